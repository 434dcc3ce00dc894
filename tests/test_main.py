import json
import subprocess
import sys
from pathlib import Path

import pytest

from elev_ssl_jax import files
from tests import commands

ROOT = Path(__file__).parents[1]


def main(*arguments, **environment):
    return commands.forked("elev_ssl_jax.main", *arguments, **environment)


def demo(workdir, *more, **environment):
    words = ("--config=configs/simclr_elev.py:demo", f"--workdir={workdir}", *commands.TINY_DEMO)
    return main(*words, *more, **environment)


def test_the_demo_runs_goes_on_and_refuses_another_configuration(tmp_path):
    which, compiled = "--config.model.encoder=resnet18", {"XLA_FLAGS": ""}  # as a user's
    done = demo(tmp_path / "run", which, "--config.epochs=1", **compiled)
    assert done.returncode == 0, done.stderr
    for word in ("elevation RMSE", "linear probe", "views.png", "to continue: python -m"):
        assert word in done.stdout
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["epochs"] == 1
    assert list(run.glob("events.out.tfevents*"))

    more = demo(tmp_path / "run", which, "--config.epochs=2", **compiled)
    assert more.returncode == 0, more.stderr
    assert not commands.beside_bars(done.stderr + more.stderr)
    assert "going on after step" in more.stdout

    other = demo(tmp_path / "run", which, "--config.seed=5")
    assert other.returncode == 2
    assert other.stderr.strip().endswith("(seed was 0 and is 5); use another --workdir")


def test_the_same_command_goes_on_whatever_it_left_to_the_data(tmp_path):
    words = ("--config=configs/finetune_classification.py:demo", f"--workdir={tmp_path / 'run'}")
    words += ("--config.data.synthetic.chips=60", "--config.data.synthetic.size=32")
    words += ("--config.data.split=labeled", "--config.batch_size=4")
    words += ("--config.model.width=0.125", "--config.finetune.frozen_epochs=1")
    words += ("--config.model.encoder=vgg",)  # compiles soonest
    words += ("--config.data.value_range=auto", "--config.data.mean=auto", "--config.data.std=auto")
    for epochs in (2, 2, 3):
        done = main(*words, f"--config.epochs={epochs}")
        assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["epochs"], saved["finetune"]["num_classes"]) == (3, 2)
    other = main(*words[:-1], "--config.data.std=(5.0,)", "--config.epochs=3")
    assert other.returncode == 2
    assert "holds another run (data.std was" in other.stderr


def test_synthetic_chips_too_small_for_the_method_are_not_made(tmp_path):
    refused = demo(
        tmp_path / "run", "--config.objective.lam=0.5", "--config.data.synthetic.size=12"
    )
    assert refused.returncode == 2
    assert "config.objective.local.patch_size is 16; a crop has 12 pixels" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_has_one_run_at_a_time(tmp_path):
    run = tmp_path / "run"
    with files.sole_writer(run, "taken"):
        second = demo(run)
        assert second.returncode == 2
        assert second.stderr == (
            f"error: --workdir={run} is in use by another run; wait for it, or name another\n"
        )
        assert [path.name for path in run.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.data.dir=/nonexistent"],
            "data.dir=/nonexistent has no nwrc/classification",
        ),
        (["--config.objective.alhpa=1"], 'Did you mean "alpha"'),
        (["--config.objective.alpha=7"], "config.objective.alpha is 7.0; it must be in [0, 1]"),
        (["--config.batch_size=many"], "--config.batch_size=many"),
        (["--surprise"], "surprise"),
        (["--config=configs/none.py"], "configs/none.py"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path, arguments, message):
    done = main("--config=configs/simclr_elev.py", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_method_and_its_loop_import_without_tensorflow():
    code = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "clu", "ml_collections", "grain"):
    sys.modules[name] = None
import elev_ssl_jax.losses, elev_ssl_jax.augment, elev_ssl_jax.metrics, elev_ssl_jax.sensors
import elev_ssl_jax.models.unet, elev_ssl_jax.models.heads, elev_ssl_jax.pretraining.loop
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
