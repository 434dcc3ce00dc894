"""An experiment whose heads tell classes from frozen features."""

import json
import shutil

import jax
import numpy as np
import pytest

from elev_ssl_jax.checks import check
from elev_ssl_jax.config import comparison
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import cells, experiment, loop, methods, step
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.reporting import compose
from tests.pretraining.test_loop import Writer


@pytest.fixture
def config():
    config = comparison("linear")
    config.model.encoder = "vgg"
    config.model.width, config.model.projection = 0.125, (16, 8)
    config.finetune.num_classes, config.finetune.head = 2, "probe"
    config.experiment.methods = ("statistics", "random", "simclr", "simclr_sees_elev")
    config.experiment.labels = (24,)
    config.experiment.pretrain_seeds, config.experiment.label_draws = 2, 2
    config.experiment.pretrain.batch_size, config.experiment.pretrain.epochs = 8, 1
    check(config)
    return config


@pytest.fixture
def data(rng):
    """Chips of which one class is brighter."""

    def make(count, seed):
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % 2
        images = rng.integers(0, 3000, (count, 32, 32, 3)) + 900 * labels[:, None, None, None]
        return Labelled(
            {
                "image": images.astype(np.uint16),
                "elevation": rng.uniform(0, 900, (count, 8, 8)).astype(np.float32),
            },
            labels.astype(np.uint8),
            np.array([f"b{i // 4}" for i in range(count)]),
        )

    train, validation, test = make(48, 0), make(24, 1), make(40, 2)

    def pretrained(settings, folder):
        arrays = {**train.inputs, "label": train.targets.astype(np.int64)}
        pretraining.pretrain(settings, folder, pretraining.Data(arrays, arrays), Writer())

    return train, test, pretrained, validation


def test_probes_compare_what_encoders_say_with_what_the_bands_say(config, data, tmp_path):
    train, test, pretrained, validation = data
    assert not experiment.run(config, tmp_path, train, test, pretrained, validation=validation)
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "cells").glob("*.json")}
    assert len(found) == 4 * 2 * 2  # a draw of labels is one cell, whatever experiment.seeds
    # One class is brighter, which the statistics have at once.
    assert min(c["accuracy"] for n, c in found.items() if n.startswith("statistics")) > 0.9
    # What is encoded is what a user gets of the run.
    run = tmp_path / "pretrain" / "simclr-1"
    features = inference.load(run).features(test.inputs["image"])
    made = methods.config_of(config, "simclr", {n: a.shape[1:] for n, a in train.inputs.items()})
    setup = loop.make_setup(made, {"image": (32, 32, 3)}, 48)
    variables = cells._encoder(setup, 1, (32, 32, 3), run)
    np.testing.assert_allclose(
        step.features(setup, variables, test), features, atol=1e-4, rtol=1e-3
    )
    assert "frozen features" in compose.write(tmp_path) + (tmp_path / "report.md").read_text()
    # An encoder that sees elevation has a band more.
    stem = inference.load(tmp_path / "pretrain" / "simclr_sees_elev-0").variables
    assert stem["params"]["encoder"]["block1_conv1"]["kernel"].shape[2] == 4


def test_an_encoder_from_elsewhere_is_one_of_the_methods(config, data, tmp_path, monkeypatch):
    train, test, pretrained, _ = data
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    config.experiment.methods, config.experiment.pretrain_seeds = ("simclr",), 1
    config.finetune.head = "knn"
    experiment.run(config, tmp_path / "one", train, test, pretrained)
    run = tmp_path / "one" / "pretrain" / "simclr-0"
    config.experiment.methods = ("from_mine", "random")
    config.experiment.encoders = (f"mine={run}",)
    config.data.value_range = (0.0, 1234.0)  # the encoder's own is taken
    check(config)
    experiment.run(config, tmp_path / "two", train, test, pretrained)
    for draw in (0, 1):
        one, two = (
            json.loads((tmp_path / folder / "cells" / f"{method}-24-0-{draw}-0.json").read_text())
            for folder, method in (("one", "simclr"), ("two", "from_mine"))
        )
        assert one["confusion_matrix"] == two["confusion_matrix"]
    # Another encoder of the same name would be taken for it.
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "one" / "pretrain" / "simclr-0", other)
    shutil.rmtree(other / "checkpoints")
    settings = methods.pretrain_config(
        methods.config_of(config, "simclr", {"image": (32, 32, 3)}), 7
    )
    settings.data.value_range = (0.0, 6000.0)
    pretrained(settings, other)
    config.experiment.encoders = (f"mine={other}",)
    with pytest.raises(InputError, match=r"on other data \(from_mine: step \d+, checksum \d+ then"):
        experiment.run(config, tmp_path / "two", train, test, pretrained)
    shutil.rmtree(other / "checkpoints")
    with pytest.raises(InputError, match=r"other has no checkpoint"):
        experiment.run(config, tmp_path / "three", train, test, pretrained)
    config.experiment.encoders = (f"mine={run}",)
    # One of an earlier version has fewer fields, and was as they are by default.
    record = json.loads((run / "config.json").read_text())
    del record["data"]["scaling"]
    (run / "config.json").write_text(json.dumps(record))
    made = methods.config_of(config, "from_mine", {"image": (32, 32, 3)})
    assert made.data.scaling == "range"
    assert made.data.value_range == (0.0, 6000.0)
    config.experiment.encoders = ("other=/nowhere",)
    with pytest.raises(InputError, match="has from_mine, but config"):
        methods.config_of(config, "from_mine", {"image": (32, 32, 3)})
    config.experiment.methods = ("from_other",)
    with pytest.raises(InputError, match="/nowhere, which is not a run's folder"):
        methods.config_of(config, "from_other", {"image": (32, 32, 3)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experiment.methods": ("supervised",)}, "another with supervised"),
        ({"experiment.methods": ("random_frozen",)}, "another with random_frozen"),
        (
            {"experiment.methods": ("statistics",), "finetune.head": "linear"},
            "another with statistics",
        ),
        ({"finetune.target": "present"}, "'' or 'label' or 'commonest' with finetune.head=probe"),
        ({"experiment.encoders": ("mine",)}, "NAME=FOLDER"),
        ({"experiment.encoders": ("mine=a", "mine=b")}, "each of another name"),
        ({"experiment.methods": ("from_",), "task": "finetune"}, "doesn't use"),
    ],
)
def test_methods_that_a_head_cannot_compare_are_refused(config, changes, said):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=said):
        check(config)
