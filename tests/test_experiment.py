import json

import jax
import numpy as np
import pandas as pd
import pytest

from elev_ssl_jax import experiment, finetune, pretrain, report, sharding
from elev_ssl_jax.config import METHODS, check, fine_tuning
from elev_ssl_jax.errors import InputError
from tests.test_finetune import SIZE, make_chips
from tests.test_pretrain import Writer


@pytest.fixture
def config():
    config = fine_tuning("unet")
    config.task = "experiment"
    config.model.width, config.model.projection = 0.125, (16, 8)
    config.finetune.frozen_epochs = config.epochs = 1
    config.experiment.methods = ("random", "elevation")
    config.experiment.labels, config.experiment.seeds = (8, 16), 2
    config.experiment.pretrain.batch_size, config.experiment.pretrain.epochs = 8, 1
    check(config)
    return config


@pytest.fixture
def data():
    train, test = make_chips("unet", 16), make_chips("unet", 12, seed=1)
    elevation = np.random.default_rng(0).uniform(0, 900, (16, 8, 8)).astype(np.float32)
    arrays = {"image": train.images, "elevation": elevation, "mask": train.targets}

    def pretrained(settings, folder):
        pretrain.pretrain(settings, folder, pretrain.Chips(arrays, arrays), Writer())

    return train, test, pretrained


def test_what_is_interrupted_or_fails_is_made_good_by_the_same_command(
    config, data, tmp_path, monkeypatch, batch_mesh
):
    train, test, pretrained = data
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    # Two devices, so that cells run at once.
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
        (folder / "config.json").write_text(config.to_json_best_effort())
    assert experiment.experiment(config, whole, train, test, pretrained) == []
    assert len(list((whole / "cells").glob("*.json"))) == 8
    report.write(whole)

    def broken(settings, folder):
        raise InputError("no luck")

    fit, begun = finetune.fit, []

    def sometimes(*args, **kwargs):
        begun.append(args)
        if len(begun) == 2:
            raise RuntimeError("out of memory")
        if len(begun) == 4:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(finetune, "fit", sometimes)
    with pytest.raises(KeyboardInterrupt):
        experiment.experiment(config, parts, train, test, broken)
    monkeypatch.setattr(finetune, "fit", fit)
    done = {path: path.read_bytes() for path in (parts / "cells").glob("*.json")}
    assert 0 < len(done) < 4
    failed = experiment.experiment(config, parts, train, test, broken)
    assert failed == ["pre-training elevation: InputError: no luck"]
    assert len(list((parts / "cells").glob("*.json"))) == 4  # the random ones

    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert experiment.experiment(config, parts, train, test, pretrained) == []
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    report.write(parts)
    assert (parts / "results.csv").read_text() == (whole / "results.csv").read_text()

    # Wider: what is there is kept.
    config.experiment.seeds = 3
    experiment.experiment(config, parts, train, test, broken)
    table = pd.read_csv(report.write(parts) and parts / "results.csv")
    assert len(table) == 12


def test_a_cell_is_the_fine_tuning_that_runs_alone(config, data, tmp_path):
    train, test, _ = data
    config.experiment.methods, config.experiment.labels = ("random",), (16,)
    config.experiment.seeds = 1
    experiment.experiment(config, tmp_path, train, test, lambda *_: None)
    cell = json.loads((tmp_path / "cells" / "random-16-0.json").read_text())
    alone = finetune.finetune(config, tmp_path / "alone", train, test, Writer())
    assert cell == {"method": "random", "labels": 16, "seed": 0} | alone


def test_pre_training_takes_the_experiments_data_and_the_methods_objective(config):
    config.data.value_range = (0.0, 9000.0)
    config.data.synthetic.chips = 100
    for method, objective in METHODS.items():
        settings = experiment.pretrain_config(config, method)
        check(settings)
        assert settings.task == "pretrain"
        assert (settings.batch_size, settings.epochs) == (8, 1)
        assert settings.optimizer.schedule == "cosine"
        assert settings.data.value_range == (0.0, 9000.0)
        assert settings.data.synthetic.chips == 0
        assert {k: settings.objective[k] for k in objective} == objective


def test_more_labels_than_there_are_end_it_before_anything_is_written(config, data, tmp_path):
    config.experiment.labels = (8, 17)
    with pytest.raises(InputError, match="17 labels are more than"):
        experiment.experiment(config, tmp_path, *data)
    assert not list(tmp_path.iterdir())
    assert data[0].images.shape[1] == SIZE
