"""Studies of made-up worlds in which it is known whether elevation can help."""

import re
import shutil

import jax
import numpy as np
import pytest

from elev_ssl_jax.checks import check
from elev_ssl_jax.config import comparison
from elev_ssl_jax.finetuning import study
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.pretraining import pictured
from elev_ssl_jax.reporting import summary
from elev_ssl_jax.runtime import run_folder, sharding
from tests.pretraining.test_loop import Writer


def make_world(count, seed):
    """Chips of which the class is the exclusive or of two tints, and places high where it is 1.

    Contrastive learning from grey views is blind to tints, and a linear probe to their exclusive
    or, so that it takes the place's own elevation to learn it; `elsewhere` is another's.
    """
    rng = np.random.default_rng(seed)
    signs, other = rng.choice((-1, 1), (2, count)), rng.choice((-1, 1), count)
    tints = 500 * np.tensordot(signs, [[1, -1, 0], [-0.5, -0.5, 1]], ((0,), (0,)))
    brightness = rng.uniform(1800, 3800, (count, 1, 1, 1))
    texture = rng.uniform(100, 500, (count, 1, 1, 1)) * rng.normal(size=(count, 32, 32, 1))
    noise = rng.normal(0, 100, (count, 32, 32, 3))
    images = brightness + texture + noise + tints[:, None, None]
    place = signs.prod(axis=0)

    def heights(side):
        level = 1500 + 1000 * side + rng.normal(0, 50, count)
        return (level[:, None, None] + rng.normal(0, 20, (count, 8, 8))).astype(np.float32)

    chips = Labelled(
        {"image": np.clip(images, 0, 6000).astype(np.uint16)},
        (place > 0).astype(np.uint8),
        np.array([f"b{i // 8}" for i in range(count)]),
    )
    return chips, {"own": heights(place), "elsewhere": heights(other)}


@pytest.fixture
def config():
    config = comparison("linear")
    config.model.width, config.model.projection = 0.125, (16, 8)
    config.finetune.num_classes = 2
    config.augment.contrastive.grayscale = 1.0
    config.augment.elevation.grayscale = config.augment.elevation.jitter_probability = 0.0
    settings = config.experiment
    settings.methods, settings.tasks = ("simclr", "simclr_elev"), ("probe",)
    settings.labels, settings.label_draws, settings.pretrain_seeds = (16,), 2, 3
    settings.pretrain.batch_size, settings.pretrain.epochs = 32, 12
    settings.pretrain.optimizer.learning_rate = 3e-3
    check(config)
    return config


def test_a_study_tells_a_world_in_which_elevation_helps_from_one_in_which_it_cannot(
    config, tmp_path, monkeypatch, batch_mesh
):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    for name in ("draw_views", "draw_elevation"):  # which take longer than the training
        monkeypatch.setattr(pictured, name, lambda *_: None)
    chips, heights = make_world(256, 0)
    train, test = (make_world(160, seed)[0] for seed in (1, 2))
    said, both = {}, config.experiment.methods
    for world in ("own", "elsewhere"):
        arrays = {**chips.inputs, "elevation": heights[world]}
        data = pretraining.Data(arrays, {name: array[:16] for name, array in arrays.items()})

        def pretrain(settings, folder, data=data):
            done = tmp_path / "own" / "pretrain" / folder.name
            if settings.objective.alpha == 0 and done.exists():  # which sees no elevation
                shutil.copytree(done, folder)
            else:
                pretraining.pretrain(settings, folder, data, Writer())

        if world == "own":  # where another's elevation is the control
            config.experiment.methods = (*both, "simclr_shuffled")
        else:
            config.experiment.methods = both
        run = tmp_path / world
        run.mkdir()
        tasks = {n: study.Task(c, train, test, None) for n, c in study.configs_of(config).items()}
        run_folder.claim(run, config, {})
        assert study.run(config, run, tasks, pretrain, None) == []
        said[world] = summary.write(run)
    beside = r"Elevation beside SimCLR: \+\S+ points \(\+\S+ to \+\S+\), more than noise"
    assert re.search(beside, said["own"])
    # The control of one pre-training may be lucky: three of them are few for a verdict.
    control = r"The image's own elevation against another's: (\S+) points"
    assert float(re.search(control, said["own"])[1]) > 15
    assert "more than noise" not in said["elsewhere"]
