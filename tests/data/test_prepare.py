import functools
import re
import subprocess
import sys

import pytest

from elev_ssl_jax.data import prepare, procedural, source, store, synthetic
from elev_ssl_jax.errors import InputError
from tests import commands
from tests.data.test_source import Data


def command(module, *arguments, run=commands.forked):
    """A command's exit code, what it printed, and what it said but for progress bars."""
    done = run(f"elev_ssl_jax.data.{module}", *arguments)
    return done.returncode, done.stdout, commands.beside_bars(done.stderr)


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    """A scene of 373 x 485 pixels in chips of 64 that overlap by half."""
    folder = tmp_path_factory.mktemp("scene")
    image, dem, labels = procedural.make_scene(0, 486)
    grids = {"image": 10.0, "dem": 30.0, "labels": 10.0}
    for (name, pixel), array in zip(
        grids.items(), (image[:, :373, :485], dem[None], labels[None]), strict=True
    ):
        grid = synthetic.from_origin(300_000, 800_000, pixel, pixel)
        synthetic._write_geotiff(folder / f"{name}.tif", array, grid)
    arguments = ["--image", folder / "image.tif", "--elevation", folder / "dem.tif"]
    arguments += ["--labels", folder / "labels.tif", "--size", 64, "--stride", 32]
    code, said, noise = command("chips", *arguments, "--out", folder / "chips")
    assert (code, noise) == (0, [])
    assert "140 chips kept" in said
    return folder / "chips"


@pytest.mark.parametrize("counts", [[], ["--labeled", 20, "--test", 20]])
def test_chips_that_overlap_are_split_by_block_without_a_word(overlapping, tmp_path, counts):
    code, said, noise = command("prepare", "--chips", overlapping, "--data-dir", tmp_path, *counts)
    assert (code, noise) == (0, [])
    lines = said.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("--split-by block: 140 of 140 chips share ground with another")
    number = 20 if counts else 10
    split = source.open_split(Data(tmp_path), "test")
    blocks = set(split.arrays("block")["block"])
    assert lines[2].startswith(
        f"0 of {number} test chips share ground with a training chip (0.0%), 0 with a labeled one "
        f"(0.0%); they lie in {len(blocks)} block"
    )
    train = source.open_split(Data(tmp_path), "unlabeled+labeled").arrays("block")
    assert not blocks & set(train["block"])
    rows = store.read_table(overlapping).set_index("Id")
    for record in split:
        assert record["block"].decode() == rows["block"][record["id"].decode()]


def test_a_random_split_of_chips_that_overlap_must_be_asked_for_twice(overlapping, tmp_path):
    arguments = ["--chips", overlapping, "--data-dir", tmp_path, "--split-by", "random"]
    code, said, noise = command("prepare", *arguments)
    assert (code, said) == (2, "")
    assert len(noise) == 1
    assert re.match(r"error: --split-by random: 140 of 140 chips .*--allow-overlap", noise[0])
    assert not list(tmp_path.rglob("*.*ecord*"))
    code, said, noise = command("prepare", *arguments, "--allow-overlap")
    assert (code, noise) == (0, [])
    assert re.search(r"\n(10|9) of 10 test chips share ground with a training chip", said)


def test_chips_side_by_side_are_split_at_random(tmp_path, capsys):
    synthetic.write_chips(tmp_path / "chips", 30, size=12, progress=False)
    prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", num_labeled=5, num_test=5)
    first, _, last = capsys.readouterr().out.splitlines()
    assert first == "--split-by random: no chips share ground"
    assert last.startswith("0 of 5 test chips share ground")


def test_the_commands_say_nothing_but_what_they_have_to(tmp_path):
    alone = functools.partial(commands.run, "-m")  # TensorFlow would speak when it is imported
    words = ("--chips", 20, "--size", 12, "--out", tmp_path / "c")
    code, said, noise = command("synthetic", *words, run=alone)
    assert (code, said, noise) == (0, "", [])
    words = ("--chips", tmp_path / "c", "--labeled", 5, "--test", 5, "--data-dir", tmp_path / "a")
    code, said, noise = command("prepare", *words, run=alone)
    assert (code, len(said.splitlines()), noise) == (0, 3, [])
    mask = next((tmp_path / "c").rglob("mask.npy"))
    mask.write_bytes(mask.read_bytes()[:200])
    words = ("--chips", tmp_path / "c", "--data-dir", tmp_path / "d")
    code, said, noise = command("prepare", *words)
    assert code == 2
    assert len(noise) == 1
    assert noise[0] == f"error: {mask} is damaged; delete {mask.parent}, and cut again"


@pytest.mark.parametrize("kind", ["demo", "overwrite"])
def test_killed_at_any_moment_the_same_command_goes_on(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.kills", tmp_path, kind], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"killed \d+ times", done.stdout)


def test_a_second_process_is_refused_while_the_first_prepares(tmp_path):
    synthetic.write_chips(tmp_path / "chips", 20, size=12, progress=False)
    settings = {"num_labeled": 3, "num_test": 3}
    target = prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", **settings)
    from elev_ssl_jax import files

    with (
        files.sole_writer(target.with_name(".1.0.0.unfinished"), ""),
        pytest.raises(InputError, match=r"1.0.0 is being prepared by another process"),
    ):
        prepare.prepare_chips(tmp_path / "chips", tmp_path / "tfds", overwrite=True, **settings)
    assert len(source.open_split(Data(tmp_path / "tfds"), "test")) == 3
