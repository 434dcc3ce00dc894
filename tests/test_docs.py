"""What the documentation shows, as a reader would do it."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import numpy as np
import pytest
import rasterio
from absl import flags
from ml_collections import config_flags
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from elev_ssl_jax.config import default
from tests import commands
from tests.campaign import world

ROOT = Path(__file__).parents[1]


def test_the_pages_are_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "nt_xent" in api
    for page, has in {
        ".": "from GeoTIFFs to a map",
        "fields": "relief_weight",
        "extend": "barlow_twins",
        "launch": "slurm.sbatch",
        "contributing": "How a change is judged",
        "changelog": "Unreleased",
        "notes": "byte code",
        "security": "trusted",
    }.items():
        assert has in re.sub("<.*?>", "", (tmp_path / "site" / page / "index.html").read_text()), (
            page
        )


def test_the_readme_is_short_and_its_links_lead_somewhere():
    for page in ("README.md", "launch/README.md", "SECURITY.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


SMALL = {
    "elev_ssl_jax.data.chips": ("--size=32", "--stride=8", "--elevation-size=11", "--block=48"),
    "elev_ssl_jax.data.prepare": ("--test=20",),
    "elev_ssl_jax.main": (
        *("--config.model.width=0.0625", "--config.epochs=1"),
        "--config.model.encoder=vgg",  # compiles soonest
    ),
}


def test_the_readmes_way_from_geotiffs_to_a_map(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (shown,) = re.findall(r"```sh\n(python -m elev_ssl_jax.data.chips.*?)```", readme(), re.DOTALL)
    world.scene(tmp_path, side=200)
    with rasterio.open(tmp_path / "image.tif") as source:
        bands = source.read() + np.uint16(7000)  # above the default range, as Landsat's numbers
        for name, band in zip(("red", "green", "blue"), bands, strict=True):
            world.write(tmp_path / f"{name}.tif", band[None])
    with rasterio.open(tmp_path / "labels.tif") as source:
        cover = np.where(source.read() == 2, 4, 1).astype(np.uint8)
    cover[:, ::9] = 11  # of which nothing is said
    world.write(tmp_path / "cover.tif", cover)
    for line in shown.replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        small = SMALL.get(words[2], ())
        if "configs/simclr_elev.py" in line:
            small = (*small, "--config.augment.crop_size=32")
        elif "configs/finetune" in line:
            small = (*small, "--config.finetune.frozen_epochs=0")
        done = commands.forked(*words[2:], *small, cwd=tmp_path)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    with rasterio.open(tmp_path / "map.tif") as source:
        assert source.shape == (200, 200)
        assert source.tags(1)["class_0"] == "water"


BY_ABSL = ("elev_ssl_jax.main", "elev_ssl_jax.plan")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "launch" / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_of_commands_there_is(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    for field in set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", text)):
        part = default()
        for name in field.split("."):
            assert name in part, f"--config.{field}"
            part = part[name]
    for module, words in shown_commands(text):
        check_words(module, words, monkeypatch)


def test_the_commands_of_the_pages_are_found():
    shown = {module for page in PAGES for module, _ in shown_commands(page.read_text())}
    names = ("main", "plan", "predict", "area", "convert", "data.chips", "data.prepare")
    assert shown >= {f"elev_ssl_jax.{name}" for name in names}


def shown_commands(text):
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(r"python -m (elev_ssl_jax\.\S+) (.*)", line):
                yield found[1], shlex.split(found[2], comments=True)


def check_words(module, words, monkeypatch):
    """Flags, by the command's own parser, which then goes no further."""
    if module in BY_ABSL:
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        known = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
        of_config = [word for word in words if word.startswith("--config")]
        for word in set(words) - set(of_config):
            assert word.startswith("--"), f"{module}: {word}"
            assert re.match(r"--(\w+)", word)[1] in known, f"{module}: {word}"
        values = flags.FlagValues()
        given = [module, *of_config]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=given)
        values(given)
        return

    class Parsed(Exception):
        pass

    def parse(*given):
        of_beam = ("--runner", "--flink_master") if "--beam" in words else ()
        strangers = [word for word in know(*given)[1] if word.split("=")[0] not in of_beam]
        assert not strangers, f"{module}: {strangers}"
        raise Parsed

    know = argparse.ArgumentParser.parse_known_args
    command = importlib.import_module(module)
    if hasattr(command, "__path__"):  # a package
        command = importlib.import_module(f"{module}.__main__")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", [module, *words])
        patched.setattr(argparse.ArgumentParser, "parse_args", parse)
        patched.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        with pytest.raises(Parsed):
            command.main()


def readme():
    return (ROOT / "README.md").read_text()


# What the notebook has, and what is as good for a look at whether its cells go together.
SMALLER = {
    "for seed in range(32)": "for seed in range(12)",
    "config.model.width = 0.25": "config.model.width = 0.0625",
    "config.epochs, config.batch_size = 6, 36": "config.epochs, config.batch_size = 1, 36",
    "frozen_epochs = 30, 3": "frozen_epochs = 1, 0",
    "len(image)))[:120]": "len(image)))[:16]",
}


@pytest.mark.parametrize("small", [True, False], ids=["small", "as it stands"])
def test_the_notebook_goes_from_arrays_to_a_map_without_tensorflow(tmp_path, monkeypatch, small):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.delenv("XLA_FLAGS")  # which a reader has not
    if small:
        monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = (ROOT / "docs" / "from_arrays.py").read_text()
    for there, here in SMALLER.items():
        assert there in source
        source = source.replace(there, here) if small else source
    notebook = jupytext.reads(source, "py:percent")
    absent = "tensorflow", "tensorflow_datasets", "array_record", "grain"
    first = f"import sys\nsys.modules.update(dict.fromkeys({absent}))"
    last = "scores['accuracy'], float(np.mean(mapped == classes)), mapped.shape == classes.shape"
    notebook.cells = [new_code_cell(first), *notebook.cells, new_code_cell(last)]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    drawn = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "data" in o]
    assert sum("image/png" in o["data"] for o in drawn) == 2  # the reader's own figures
    accuracy, right, whole = eval(notebook.cells[-1].outputs[0]["data"]["text/plain"])
    assert whole
    assert small or (accuracy > 0.4 and right > 0.3)
    assert (tmp_path / "runs" / "notebook" / "map.tif").exists()
