import html
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from elev_ssl_jax import pictures
from elev_ssl_jax.reporting import compose, documents
from tests.reporting.test_compose import CLEAR, write_run


@pytest.fixture
def chromium():
    names = "chromium", "chromium-browser", "google-chrome"
    found = [path for path in map(shutil.which, names) if path]
    if not found:
        pytest.skip("no Chromium to open the page in")

    def run(*arguments):
        return subprocess.run(
            [found[0], "--headless", "--no-sandbox", "--disable-gpu", *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )

    return run


@pytest.fixture
def folder(tmp_path, rng):
    """A document's, with a table and words that are wider than a telephone."""
    (tmp_path / "below").mkdir()
    picture = tmp_path / "below" / "some.png"
    pictures.draw_classes(picture, rng.random((6, 8, 8, 3)), np.zeros(6, int), {}, ("water",))
    wide = {f"a column with a long title, number {i}": ["12.34 ± 5.67"] * 3 for i in range(12)}
    blocks = [
        ("title", "A < B & C"),
        ("text", "loss_of_" * 60),
        ("heading", "Some"),
        ("table", pd.DataFrame(wide)),
        ("image", picture),
    ]
    assert documents.write(tmp_path, blocks) == tmp_path / "report.html"
    return tmp_path


def test_pictures_are_found_from_where_the_markdown_lies(folder):
    (link,) = re.findall(r"!\[some\]\((.*)\)", (folder / "report.md").read_text())
    assert (folder / link).exists()


@pytest.mark.parametrize("kind", ["made up", "an experiment's"])
def test_a_browser_shows_the_page_without_overflow_or_complaint(folder, chromium, kind):
    title, rows = "A < B & C", 4
    if kind != "made up":
        compose.write(write_run(folder, CLEAR, blocks=6))
        title, rows = "nwrc/classification: 60 fine-tunings", 20
    page = (folder / "report.html").read_text()
    widths = 400, 1200
    frames = "".join(
        f'<iframe style="width:{w}px;height:800px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for w in widths
    )
    script = """<script>onload = () => {
        const of = frame => { const d = frame.contentDocument, r = d.documentElement; return {
            title: d.title, wide: r.scrollWidth, there: r.clientWidth,
            pictures: [...d.images].map(i => i.naturalWidth), rows: d.querySelectorAll("tr").length
        }};
        document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(of));
    }</script>"""
    outer = folder / "outer.html"
    outer.write_text(f"<!doctype html><meta charset=utf-8><title></title>{frames}{script}")
    ran = chromium("--enable-logging=stderr", "--dump-dom", outer.as_uri())
    assert "CONSOLE" not in ran.stderr
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", ran.stdout)[1]))
    for one, width in zip(found, widths, strict=True):
        assert one["title"] == title
        assert one["there"] == pytest.approx(width, abs=20)  # less a scroll bar
        assert one["wide"] <= one["there"]
        assert min(one["pictures"]) > 0
        assert one["rows"] >= rows
