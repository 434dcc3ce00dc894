import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from elev_ssl_jax import files, sensors
from elev_ssl_jax import main as elev_main
from elev_ssl_jax.config import default, fine_tuning
from elev_ssl_jax.data import prepare, synthetic
from elev_ssl_jax.errors import InputError
from tests import runs
from tests.test_config import load

ROOT = Path(__file__).parents[1]


def main(*arguments):
    ours = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL")  # a user's environment has none of them
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    return subprocess.run(
        [sys.executable, "-m", "elev_ssl_jax.main", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def demo(workdir, *more):
    return main(
        "--config=configs/simclr_elev.py:demo",
        f"--workdir={workdir}",
        "--config.data.synthetic.chips=120",
        "--config.data.synthetic.size=32",
        "--config.model.width=0.125",
        "--config.batch_size=16",
        *more,
    )


def test_the_demo_runs_goes_on_and_refuses_another_configuration(tmp_path):
    done = demo(tmp_path / "run", "--config.epochs=1")
    assert done.returncode == 0, done.stderr
    for word in ("elevation RMSE", "linear probe", "views.png", "to continue: python -m"):
        assert word in done.stdout
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["epochs"] == 1
    assert list(run.glob("events.out.tfevents*"))

    more = demo(tmp_path / "run", "--config.epochs=2")
    assert more.returncode == 0, more.stderr
    bars = ("pre-training", "synthetic", "masks", "unlabeled", "labeled", "test", "reading")
    for line in (done.stderr + more.stderr).replace("\r", "\n").splitlines():
        assert not line.strip() or line.strip().startswith(bars), line
    assert "going on after step" in more.stdout

    other = demo(tmp_path / "run", "--config.seed=5")
    assert other.returncode == 2
    assert other.stderr.strip().endswith("(seed was 0 and is 5); use another --workdir")


def test_the_same_command_goes_on_whatever_it_left_to_the_data(tmp_path):
    words = ("--config=configs/finetune_classification.py:demo", f"--workdir={tmp_path / 'run'}")
    words += ("--config.data.synthetic.chips=60", "--config.data.synthetic.size=32")
    words += ("--config.data.split=labeled", "--config.batch_size=4")
    words += ("--config.model.width=0.125", "--config.finetune.frozen_epochs=1")
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


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("finetune_two_sensors", {"augment.crop_size": 80}, "crop_size is 80; it must be at most"),
        ("finetune_two_sensors", {"augment.crop_size": 4, "model.encoder": "vgg"}, "8 are needed"),
        ("fusion_fractions", {"augment.crop_size": 4}, "encoder is vgg, which .* 4 x 4 pixels"),
        ("table2", {"experiment.methods": ("glcnet",), "augment.crop_size": 20}, "'mean' for"),
    ],
)
def test_sizes_that_no_encoder_can_do_with_end_it_before_chips_are_made(name, changes, said):
    config = load(ROOT / "configs" / f"{name}.py")("demo")
    elev_main._check_synthetic(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=said):
        elev_main._check_synthetic(config)


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


@pytest.fixture
def settings():
    config = fine_tuning("unet")
    config.data.name = "chips/segmentation"
    return config


def test_classes_are_those_of_the_data_unless_said_otherwise(settings):
    names = ("water", "wood", "town")
    elev_main._name_classes(settings, names)
    assert (settings.finetune.num_classes, settings.finetune.classes) == (3, names)
    elev_main._name_classes(settings, names)
    settings.finetune.num_classes = 2
    with pytest.raises(InputError, match=r"num_classes is 2, but .* has 3: water, wood, town"):
        elev_main._name_classes(settings, names)
    settings.finetune.update({"num_classes": 0, "classes": ("town", "water", "wood")})
    with pytest.raises(InputError, match=r"classes is town, water, wood, but .* water, wood, town"):
        elev_main._name_classes(settings, names)
    settings.finetune.update({"num_classes": 0, "classes": ()})
    elev_main._name_classes(settings, ())  # of data from when there were two
    assert settings.finetune.num_classes == 2


def test_auto_is_measured_on_the_chips_or_taken_from_the_run_to_start_from(settings, tmp_path):
    class Split(dict):
        def nodata(self, names):
            return (0.0,)

    rng = np.random.default_rng(0)
    split = Split(image=rng.integers(0, 9000, (50, 8, 8, 3)).astype(np.uint16))
    settings.data.value_range = ("auto",)
    config = settings.copy_and_resolve_references()
    elev_main._measure(config, split)
    low, high = np.array(config.data.value_range).T
    assert (low < 200).all()
    assert (high > 8800).all()
    assert config.data.nodata == (0.0,)

    run = runs.settings()
    run.data.value_range, run.data.mean = ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)), (1.5,)
    run.data.std = (0.5,)
    runs.save_run(tmp_path, run, (32, 32, 3))
    settings.init_from = str(tmp_path)
    settings.data.mean = settings.data.std = ("auto",)
    elev_main._measure_alike(settings, settings)
    elev_main._measure(settings, split)
    for field in ("value_range", "mean", "std"):
        assert sensors.pairs(settings.data.value_range) == run.data.value_range
        if field != "value_range":
            assert tuple(settings.data[field]) == run.data[field]


def test_own_scenes_are_found_under_the_name_that_they_had(tmp_path, capsys):
    synthetic.write_chips(tmp_path / "chips", 40, size=12, progress=False)
    prepare.prepare_chips(tmp_path / "chips", tmp_path / "p", num_labeled=5, num_test=5)
    config = default()
    config.data.dir, config.data.name = str(tmp_path / "p"), "nwrc/segmentation"
    capsys.readouterr()
    elev_main._find_data(config, tmp_path)
    assert config.data.name == "chips/segmentation"
    assert "has no nwrc/segmentation, but chips/segmentation, which is taken" in (
        capsys.readouterr().out
    )
    config.data.name = "nwrc/classification"
    elev_main._find_data(config, tmp_path)
    assert config.data.name == "nwrc/classification"
