"""Pages that are files from elsewhere in the repository, whose links start there."""

import re
from pathlib import Path

_PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "launch.md": "launch/README.md",
    "notes.md": "benchmarks/NOTES.md",
    "security.md": "SECURITY.md",
}
_ELSEWHERE = {
    "](docs/": "](",
    "](SECURITY.md)": "](security.md)",
    "](CHANGELOG.md)": "](changelog.md)",
    "](CONTRIBUTING.md)": "](contributing.md)",
    "](benchmarks/NOTES.md)": "](notes.md)",
    "](launch/README.md)": "](launch.md)",
}
# What is no page: its link becomes its text.
_FILE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|from_arrays\.py)[^)#]+(?<!\.md)\)")


def on_page_markdown(markdown, *, page, config, files):
    """Called by MkDocs for each page."""
    name = _PAGES.get(page.file.src_uri)
    if name is None:
        return markdown
    text = Path(config.config_file_path).parent.joinpath(name).read_text()
    for here, there in _ELSEWHERE.items():
        text = text.replace(here, there)
    return _FILE.sub(r"\1", text)
