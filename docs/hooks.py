"""The first page is the README, whose links start elsewhere."""

from pathlib import Path

_ELSEWHERE = {
    "](docs/from_arrays.ipynb)": "](python.md)",
    "](docs/": "](",
    "](SECURITY.md)": "](security.md)",
    "](benchmarks/NOTES.md)": "](notes.md)",
}


def on_page_markdown(markdown, *, page, config, files):
    """Called by MkDocs for each page."""
    if page.file.src_uri != "index.md":
        return markdown
    text = Path(config.config_file_path).with_name("README.md").read_text()
    for here, there in _ELSEWHERE.items():
        text = text.replace(here, there)
    return text
