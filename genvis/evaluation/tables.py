"""Records as a table for people: a row for whose images, a column for every measure."""

from collections.abc import Sequence

from genvis.evaluation.records import Record, text

Protocol = tuple[object, ...]  # what two values of one column share


def cells(records: Sequence[Record]) -> list[list[str]]:
    """Titles, then a row for every subject; the newest record of a measure counts. What was
    measured otherwise (by other weights, at another size, against other images) has its own column.
    """
    columns = {_protocol(record): _column(record) for record in records}
    rows: dict[str, dict[Protocol, str]] = {}
    for record in records:
        rows.setdefault(record.subject or "", {})[_protocol(record)] = _cell(record)
    body = [[name, *(row.get(column, "-") for column in columns)] for name, row in rows.items()]
    return [["images", *columns.values()], *body]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = ("".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def board(records: Sequence[Record]) -> str:
    """A line for every record, and where there are several subjects, a table of them."""
    lines = [text(record) for record in records]
    if len({record.subject for record in records}) < 2:
        return "\n".join(lines)
    named = [f"{r.subject}: {line}" for r, line in zip(records, lines, strict=True)]
    return "\n".join([*named, "", aligned(cells(records))])


def _protocol(record: Record) -> Protocol:
    known = record.metric, record.reference, record.reference_sha256
    return (*known, record.resize, record.n, record.n_reference) if record.extractor else known


def _column(record: Record) -> str:
    words = [f"{record.metric} to {record.reference}" if record.reference else record.metric]
    if record.extractor:
        words += [f"N={record.n}", record.resize or ""]
    return ", ".join(filter(None, words))


def _cell(record: Record) -> str:
    spread = record.error or record.sd
    return f"{record.value:.4g}" + (f" +- {spread:.2g}" if spread else "")
