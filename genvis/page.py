"""Pieces of an HTML page that is complete in itself: its pictures are inside it."""

import base64
import html
from collections.abc import Sequence

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #333;
  max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1, h2 { font-weight: 600 } h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .3em .9em; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 }
td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: .5em 1.2em .5em 0; vertical-align: top }
figcaption, .note { color: #666 }
img { image-rendering: pixelated; max-width: 500px }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
"""


def page(title: str, parts: Sequence[str], style: str = "") -> str:
    """A whole page of parts that are HTML already; the title is text, `style` more of CSS."""
    name = html.escape(title)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{name}</title>"
        f"<style>{STYLE}{style}</style><body><h1>{name}</h1>{''.join(parts)}</body></html>"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one as titles."""
    head, *body = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def figure(content: str, caption: str = "") -> str:
    """HTML with a caption, which is text."""
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def picture(png: bytes, alt: str, attributes: str = "") -> str:
    """An image that is part of the page."""
    data = base64.b64encode(png).decode()
    given = f" {attributes}" if attributes else ""
    return f"<img alt='{html.escape(alt)}'{given} src='data:image/png;base64,{data}'>"
