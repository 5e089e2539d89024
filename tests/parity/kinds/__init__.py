"""One module per kind of golden case, named after it: `check(case: Case) -> None` claims it.

`check` computes every output of the case from its configuration and inputs and calls
`case.compare` on each, or `case.omit` with the reason. A new kind is one new file here.
"""
