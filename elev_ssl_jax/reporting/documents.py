"""Titles, texts, tables and pictures as a document, in Markdown and in HTML."""

import base64
import html
from collections.abc import Sequence
from typing import Any

# What it is, "title", "heading", "text", "table" or "image", and its text, DataFrame or path.
Block = tuple[str, Any]


def markdown(blocks: Sequence[Block]) -> str:
    """A document whose pictures lie beside it."""
    parts = []
    for kind, content in blocks:
        if kind == "table":
            rows = [content.columns, ["---"] * content.shape[1], *content.to_numpy()]
            parts.append("\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows))
        elif kind == "image":
            parts.append(f"![{content.stem}]({content.name})")
        else:
            parts.append({"title": "# ", "heading": "## ", "text": ""}[kind] + content)
    return "\n\n".join(parts) + "\n"


def page(title: str, blocks: Sequence[Block]) -> str:
    """A page of HTML in one piece, pictures included."""
    parts = []
    for kind, content in blocks:
        if kind == "table":
            parts.append(content.to_html(index=False, border=0))
        elif kind == "image":
            data = base64.b64encode(content.read_bytes()).decode()
            parts.append(f'<img alt="{content.stem}" src="data:image/png;base64,{data}">')
        else:
            tag = {"title": "h1", "heading": "h2", "text": "p"}[kind]
            parts.append(f"<{tag}>{html.escape(content)}</{tag}>")
    style = (
        "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse;margin:1em 0}"
        "td,th{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left}img{max-width:100%}"
    )
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    return f"<!doctype html>{head}\n" + "\n".join(parts) + "\n"
