"""Titles, texts, tables and pictures as a document, in Markdown and in HTML."""

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elev_ssl_jax import files

# What it is, "title", "heading", "text", "table" or "image", and its text, DataFrame or path.
Block = tuple[str, Any]

# Tables that are wider than a screen are pushed sideways within the page; on paper they shrink.
_STYLE = """
body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:1em 0}
table{border-collapse:collapse}
td,th{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left;overflow-wrap:normal}
img{max-width:100%}
@media print{
@page{margin:15mm}
body{font-size:10pt;margin:0;padding:0;max-width:none}
.wide{overflow:visible}
table{font-size:7.5pt;width:100%}
td,th{padding:.2em .4em}
h2{break-after:avoid}
tr,img{break-inside:avoid}
img{max-height:230mm}
}
"""


def plus_minus(mean: float, half: float, digits: int) -> str:
    """A mean, and half the width of its interval if that is known."""
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def write(folder: Path, blocks: Sequence[Block]) -> Path:
    """Writes `report.md`, and `report.html`, which has everything in it; returns that.

    Args:
      folder: Where pictures are, or in folders below.
      blocks: Of which one is the title.
    """
    files.write_text(folder / "report.md", _markdown(folder, blocks))
    page = folder / "report.html"
    files.write_text(page, _page(blocks))
    return page


def _markdown(folder, blocks):
    parts = []
    for kind, content in blocks:
        if kind == "table":
            rows = [content.columns, ["---"] * content.shape[1], *content.to_numpy()]
            parts.append("\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows))
        elif kind == "image":
            parts.append(f"![{content.stem}]({content.relative_to(folder)})")
        else:
            parts.append({"title": "# ", "heading": "## ", "text": ""}[kind] + content)
    return "\n\n".join(parts) + "\n"


def _page(blocks):
    parts = []
    for kind, content in blocks:
        if kind == "table":
            parts.append(f"<div class=wide>{content.to_html(index=False, border=0)}</div>")
        elif kind == "image":
            data = base64.b64encode(content.read_bytes()).decode()
            parts.append(f'<img alt="{content.stem}" src="data:image/png;base64,{data}">')
        else:
            tag = {"title": "h1", "heading": "h2", "text": "p"}[kind]
            parts.append(f"<{tag}>{html.escape(content)}</{tag}>")
    title = html.escape(next(content for kind, content in blocks if kind == "title"))
    head = (
        "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style>"
    )
    return f"<!doctype html><html lang=en>{head}\n" + "\n".join(parts) + "\n"
