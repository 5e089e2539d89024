"""Curves for reports, as self-contained SVG text or as PNG files."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INK = "#333333"
COLOURS = (
    "#2a6f97", "#c8553d", "#588157", "#8a5a9e", "#b08900", "#4d908e", "#a23e48", "#7f7f7f"
)  # fmt: skip
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


@dataclass(frozen=True)
class Curve:
    """y over x, with a band between low and high where given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def svg(
    curves: Sequence[Curve],
    title: str,
    x: str,
    y: str,
    *,
    levels: dict[str, float] | None = None,
    log_x: bool = False,
) -> str:
    """One plot; `levels` are horizontal lines by name, `log_x` is base 2 with the given ticks."""
    figure = blank()
    draw(figure.add_subplot(), curves, title, x, y, levels=levels, log_x=log_x)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def blank(columns: int = 1) -> Any:
    """A figure of matplotlib's with room for so many plots beside each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(5.2 * columns, 3.4), layout="constrained")


def key_beside(figure: Any) -> None:
    """One key for all plots of a figure, which show the same curves, to their right."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)


def png(figure: Any) -> bytes:
    """A figure as a PNG file, the same bytes whenever it is drawn."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def draw(
    axes: Any,
    curves: Sequence[Curve],
    title: str,
    x: str,
    y: str,
    *,
    levels: dict[str, float] | None = None,
    log_x: bool = False,
    key: bool = True,
) -> None:
    """The curves of `svg` on axes of matplotlib's; `key` says on them which is which."""
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        marker = "o" if len(curve.x) <= 16 else None
        axes.plot(curve.x, curve.y, color=colour, label=curve.label, marker=marker, markersize=4)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    for i, (name, value) in enumerate((levels or {}).items()):
        axes.axhline(
            value, color=INK, linewidth=0.8, linestyle=("--", ":", "-.")[i % 3], label=name
        )
    if log_x:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(curves[0].x), [f"{value:g}" for value in curves[0].x])
    label(axes, title, x, y)
    if key:
        axes.legend(fontsize=8, frameon=False)


def label(axes: Any, title: str, x: str, y: str) -> None:
    """Names of the plot and of both axes, on a light grid without a frame."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
