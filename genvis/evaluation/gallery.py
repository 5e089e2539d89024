"""A text run to look at: prompts by seeds, one self-contained HTML page."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from genvis.images import png
from genvis.page import page, picture, table

SIDE, MOST = 96, 256  # of an image on the page: CSS pixels at least, pixels at most
STYLE = """
td.prompt { text-align: left; max-width: 18em }
td.image { padding: .3em; text-align: center }
td.image img { display: block; border: 3px solid #ccc }
td.right img { border-color: #2f9e44 } td.wrong img { border-color: #c92a2a }
td.image span { font-size: 12px; color: #666 }
.held { color: #8a5a9e }
"""


@dataclass(frozen=True)
class Shown:
    """One image (3, H, W) uint8 under its seed; right: a checker's verdict, None without one; note:
    what is said when the pointer rests on it.
    """

    image: Tensor
    seed: str
    right: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A prompt's images; held_out: a composition that training never showed."""

    prompt: str
    images: Sequence[Shown]
    category: str = ""
    held_out: bool = False


def gallery(
    title: str, rows: Sequence[Row], summary: Sequence[Sequence[str]] = (), note: str = ""
) -> str:
    """The page: a note, a table of results (titles first), and a table of images for each category,
    in the order in which they first come.
    """
    parts = [f"<p class='note'>{html.escape(note)}</p>"] if note else []
    parts += [table(summary)] if summary else []
    if any(shown.right is not None for row in rows for shown in row.images):
        parts.append(
            "<p class='note'>Below an image: its number among the prompt's, and the checker's "
            "verdict, ✓ or ✗.</p>"
        )
    for category in dict.fromkeys(row.category for row in rows):
        parts += [f"<h2>{html.escape(category)}</h2>"] if category else []
        body = "".join(_row(row) for row in rows if row.category == category)
        parts.append(f"<table>{body}</table>")
    return page(title, parts, STYLE)


def _row(row: Row) -> str:
    held = " <span class='held'>held out</span>" if row.held_out else ""
    known = [shown.right for shown in row.images if shown.right is not None]
    share = f"<br><span class='note'>{sum(known)} of {len(known)}</span>" if known else ""
    cells = "".join(_cell(row.prompt, shown) for shown in row.images)
    return f"<tr><td class='prompt'>{html.escape(row.prompt)}{held}{share}</td>{cells}</tr>"


def _cell(prompt: str, shown: Shown) -> str:
    kind = {None: "image", True: "image right", False: "image wrong"}[shown.right]
    mark = {None: "", True: " ✓", False: " ✗"}[shown.right]
    image = _small(shown.image.cpu())
    width = max(1, -(-SIDE // image.shape[-1])) * image.shape[-1]  # whole multiples stay sharp
    shown_as = picture(png(image), prompt, f"width='{width}'")
    title = f" title='{html.escape(shown.note, quote=True)}'" if shown.note else ""
    return f"<td class='{kind}'{title}>{shown_as}<span>{html.escape(shown.seed)}{mark}</span></td>"


def _small(image: Tensor) -> Tensor:
    """(3, H, W) uint8 with sides up to `MOST`: the page holds hundreds."""
    height, width = image.shape[-2:]
    if max(height, width) <= MOST:
        return image
    to = [max(1, side * MOST // max(height, width)) for side in (height, width)]
    return F.interpolate(image[None], to, mode="bilinear", antialias=True)[0]
