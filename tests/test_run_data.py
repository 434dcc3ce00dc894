from pathlib import Path

import numpy as np
import pytest

from elev_ssl_jax import run_data, sensors
from elev_ssl_jax.config import default, fine_tuning
from elev_ssl_jax.data import prepare, synthetic
from elev_ssl_jax.errors import InputError
from tests import runs
from tests.test_config import load

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings():
    config = fine_tuning("unet")
    config.data.name = "chips/segmentation"
    return config


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
    run_data.check_synthetic(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=said):
        run_data.check_synthetic(config)


def test_classes_are_those_of_the_data_unless_said_otherwise(settings):
    names = ("water", "wood", "town")
    run_data.name_classes(settings, names)
    assert (settings.finetune.num_classes, settings.finetune.classes) == (3, names)
    run_data.name_classes(settings, names)
    settings.finetune.num_classes = 2
    with pytest.raises(InputError, match=r"num_classes is 2, but .* has 3: water, wood, town"):
        run_data.name_classes(settings, names)
    settings.finetune.update({"num_classes": 0, "classes": ("town", "water", "wood")})
    with pytest.raises(InputError, match=r"classes is town, water, wood, but .* water, wood, town"):
        run_data.name_classes(settings, names)
    settings.finetune.update({"num_classes": 0, "classes": ()})
    run_data.name_classes(settings, ())  # of data from when there were two
    assert settings.finetune.num_classes == 2


def test_auto_is_measured_on_the_chips_or_taken_from_the_run_to_start_from(settings, tmp_path):
    class Split(dict):
        def nodata(self, names):
            return (0.0,)

    rng = np.random.default_rng(0)
    split = Split(image=rng.integers(0, 9000, (50, 8, 8, 3)).astype(np.uint16))
    settings.data.value_range = ("auto",)
    config = settings.copy_and_resolve_references()
    run_data.measure(config, split)
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
    run_data.measure_alike(settings, settings)
    run_data.measure(settings, split)
    assert sensors.pairs(settings.data.value_range) == run.data.value_range
    assert (settings.data.mean, settings.data.std) == ((1.5,), (0.5,))


def test_a_run_that_has_begun_keeps_its_scale_when_its_ancestor_is_gone(settings, tmp_path):
    run = runs.settings()
    run.data.value_range = ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0))
    runs.save_run(tmp_path / "run", run, (32, 32, 3))
    settings.init_from, settings.data.value_range = str(tmp_path / "gone"), ("auto",)
    run_data.measure_alike(settings, settings, tmp_path / "run")
    assert sensors.pairs(settings.data.value_range) == run.data.value_range
    settings.data.value_range = ("auto",)
    with pytest.raises(InputError, match="gone has no checkpoint"):
        run_data.measure_alike(settings, settings, tmp_path / "new")
    settings.init_bands = (0, 1, 2, 2)  # other images, of which nothing is known there
    run_data.measure_alike(settings, settings)
    assert tuple(settings.data.value_range) == ("auto",)


def test_own_scenes_are_found_under_the_name_that_they_had(tmp_path, capsys):
    synthetic.write_chips(tmp_path / "chips", 40, size=12, progress=False)
    prepare.prepare_chips(tmp_path / "chips", tmp_path / "p", num_labeled=5, num_test=5)
    config = default()
    config.data.dir, config.data.name = str(tmp_path / "p"), "nwrc/segmentation"
    capsys.readouterr()
    run_data.find(config, tmp_path)
    assert config.data.name == "chips/segmentation"
    assert "has no nwrc/segmentation, but chips/segmentation, which is taken" in (
        capsys.readouterr().out
    )
    config.data.name = "nwrc/classification"
    run_data.find(config, tmp_path)
    assert config.data.name == "nwrc/classification"
