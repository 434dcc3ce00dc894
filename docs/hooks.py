"""Pages that are files of the repository's top, whose links start elsewhere."""

from pathlib import Path

_PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_ELSEWHERE = {
    "](docs/": "](",
    "](SECURITY.md)": "](security.md)",
    "](CHANGELOG.md)": "](changelog.md)",
    "](CONTRIBUTING.md)": "](contributing.md)",
    "](benchmarks/NOTES.md)": "](notes.md)",
    "[cite](CITATION.cff)": "cite (`CITATION.cff`)",
}


def on_page_markdown(markdown, *, page, config, files):
    """Called by MkDocs for each page."""
    name = _PAGES.get(page.file.src_uri)
    if name is None:
        return markdown
    text = Path(config.config_file_path).with_name(name).read_text()
    for here, there in _ELSEWHERE.items():
        text = text.replace(here, there)
    return text
