"""MixDQ: quantizers, text tokens and skips apart, and how bits are allocated."""

from golden_case import Case

from kinds import mixdq_allocation, mixdq_layers


def check(case: Case) -> None:
    if case.name.startswith("allocation") or "layers" in case.spec:
        mixdq_allocation.allocation(case)
    elif "ssim" in case.spec:
        mixdq_allocation.metrics(case)
    elif "in/calib" in case.stored:
        mixdq_layers.quantizers(case)
    elif "in/text" in case.stored:
        mixdq_layers.first_token(case)
    elif "out/split" in case.stored:
        mixdq_layers.shortcut(case)
    else:
        case.unclaimed()
