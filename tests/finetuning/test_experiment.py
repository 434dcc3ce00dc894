import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from elev_ssl_jax import main, metrics
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import comparison
from elev_ssl_jax.data import source, synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import experiment, loop, methods, single, step
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.recipes import METHODS, Recipe
from elev_ssl_jax.reporting import compose
from elev_ssl_jax.runtime import sharding, starting
from tests import runs
from tests.finetuning.test_loop import SIZE, make_chips
from tests.pretraining.test_loop import Writer


@pytest.fixture
def config():
    config = comparison("unet")
    config.model.encoder = "vgg"
    config.model.width, config.model.projection = 0.125, (16, 8)
    config.finetune.num_classes = 2
    config.finetune.frozen_epochs = config.epochs = 1
    config.experiment.methods = ("random", "elevation")
    config.experiment.labels = (8, 16)
    config.experiment.pretrain_seeds, config.experiment.seeds = 2, 1
    config.experiment.pretrain.batch_size, config.experiment.pretrain.epochs = 8, 1
    check(config)
    return config


@pytest.fixture
def data():
    train, test = make_chips("unet", 16), make_chips("unet", 12, seed=1)
    test = test._replace(groups=np.array(list("abbaccddeeea")))
    elevation = np.random.default_rng(0).uniform(0, 900, (16, 8, 8)).astype(np.float32)
    arrays = {**train.inputs, "elevation": elevation, "mask": train.targets}

    def pretrained(settings, folder):
        pretraining.pretrain(settings, folder, pretraining.Data(arrays, arrays), Writer())

    return train, test, pretrained


@pytest.fixture
def untrained(monkeypatch):
    """Cells that take no time, one after the other; what they start from and encode."""
    seen = types.SimpleNamespace(starts=[], encoded=[])

    def fit(setup, variables, chips, seed, **kwargs):
        stem = np.asarray(variables["params"]["encoder"]["block1_conv1"]["kernel"])
        seen.starts.append((seed, stem, np.asarray(chips.inputs["image"])))
        yield loop.Epoch("full", 1, types.SimpleNamespace(variables=variables), 1.0)

    def judge(setup, variables, chips, without=""):
        classes = np.zeros_like(chips.targets)
        return metrics.confusion_matrix(chips.targets, classes, 2), classes

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(step, "judge", judge)
    monkeypatch.setattr(
        loop,
        "encode_views",
        lambda setup, variables, chips, _: seen.encoded.append(len(chips["image"])),
    )
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    return seen


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
    assert experiment.run(config, whole, train, test, pretrained) == []
    assert len(list((whole / "cells").glob("*.json"))) == 8
    compose.write(whole)

    def broken(settings, folder):
        raise InputError("no luck")

    fit, begun = loop.fit, []

    def sometimes(*args, **kwargs):
        begun.append(args)
        if len(begun) == 2:
            raise RuntimeError("out of memory")
        if len(begun) == 4:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(loop, "fit", sometimes)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, parts, train, test, broken)
    monkeypatch.setattr(loop, "fit", fit)
    done = {path: path.read_bytes() for path in (parts / "cells").glob("*.json")}
    assert 0 < len(done) < 4
    failed = experiment.run(config, parts, train, test, broken)
    assert failed == [f"pre-training elevation-{r}: InputError: no luck" for r in (0, 1)]
    assert len(list((parts / "cells").glob("*.json"))) == 4  # the random ones

    stamps = {path: path.stat().st_mtime_ns for path in done}
    assert experiment.run(config, parts, train, test, pretrained) == []
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    compose.write(parts)
    assert (parts / "results.csv").read_text() == (whole / "results.csv").read_text()

    # Wider: what is there is kept.
    config.experiment.seeds = 2
    experiment.run(config, parts, train, test, broken)
    table = pd.read_csv(compose.write(parts) and parts / "results.csv")
    assert len(table) == 16
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    for path in (parts / "cells").glob("*.json"):  # the blocks' counts are the whole's
        blocks = np.load(path.with_suffix(".npz"))
        assert blocks["blocks"].tolist() == list("abcde")
        whole = json.loads(path.read_text())["confusion_matrix"]
        np.testing.assert_array_equal(blocks["matrices"].sum(axis=0), whole)
    assert not [path for path in (parts / "cells").iterdir() if path.name.startswith(".")]


def test_a_cell_is_the_fine_tuning_that_runs_alone(config, data, tmp_path):
    train, test, _ = data
    config.experiment.methods, config.experiment.labels = ("random",), (16,)
    config.experiment.pretrain_seeds = 1
    experiment.run(config, tmp_path, train, test, lambda *_: None)
    cell = json.loads((tmp_path / "cells" / "random-16-0-0-0.json").read_text())
    alone = single.finetune(config, tmp_path / "alone", train, test, Writer())
    about = {"method": "random", "labels": 16, "repetition": 0, "draw": 0, "seed": 0}
    said = json.loads((tmp_path / "config.json").read_text())["fingerprint"]
    del alone["calibration"]  # which the cells of an experiment don't have
    assert cell == about | {"data": said} | alone


def test_pre_training_takes_the_experiments_data_and_the_methods_objective(config):
    config.data.value_range = (0.0, 9000.0)
    config.data.synthetic.chips = 100
    for method, recipe in METHODS.items():
        fields = recipe.fields
        if not recipe.pretrained or "data.inputs" in fields:
            continue
        settings = methods.config_of(config, method, {"image": (SIZE, SIZE, 3)})
        settings = methods.pretrain_config(settings)
        check(settings)
        assert settings.task == "pretrain"
        assert (settings.batch_size, settings.epochs) == (8, 1)
        assert settings.optimizer.schedule == "cosine"
        assert settings.data.value_range == (0.0, 9000.0)
        assert settings.data.synthetic.chips == 0
        assert {f"objective.{k}": settings.objective.get(k) for k in ("alpha", "lam")} == {
            k: fields[k] for k in ("objective.alpha", "objective.lam")
        }


def test_a_repetition_draws_anew_what_is_left_to_chance(
    config, data, tmp_path, monkeypatch, untrained
):
    train, test, _ = data
    config.experiment.methods, config.experiment.labels = ("random", "simclr", "elevation"), (8,)
    config.experiment.label_draws, config.experiment.seeds = 2, 2
    pretrainings = []

    def pretrained(settings, folder):
        done = len(list((tmp_path / "cells").glob("*.json")))
        pretrainings.append((folder.name, settings.seed, done))

    def fake_load(run, variables):
        sevens = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7), variables)
        return starting.Start(sevens, {})

    monkeypatch.setattr(starting, "from_run", fake_load)
    assert experiment.run(config, tmp_path, train, test, pretrained) == []
    assert pretrainings == [  # a repetition is done before the next begins
        ("simclr-0", 0, 0),
        ("elevation-0", 0, 0),
        ("simclr-1", 1, 12),
        ("elevation-1", 1, 12),
    ]
    names = {path.stem for path in (tmp_path / "cells").glob("*.json")}
    assert len(names) == 3 * 2 * 2 * 2
    seeds_of = {}
    for name in names:
        method, _, repetition, _, seed = name.split("-")
        seeds_of.setdefault((method, repetition), set()).add(seed)
    # The same for every method, and no fine-tuning seed in two repetitions.
    assert set(map(frozenset, seeds_of.values())) == {
        frozenset({"0", "1"}),
        frozenset({"1000", "1001"}),
    }
    # The random encoder, which comes first in each repetition, is the repetition's, not the
    # fine-tuning's.
    starts = untrained.starts[:4] + untrained.starts[12:16]
    assert [seed for seed, _, _ in starts] == [0, 1, 0, 1, 1000, 1001, 1000, 1001]
    stems = [stem for _, stem, _ in starts]
    for i, stem in enumerate(stems):
        np.testing.assert_array_equal(stem, stems[0 if i < 4 else 4])
    assert not np.array_equal(stems[0], stems[4])
    # Two sets of labels in each of two repetitions, the same for all methods.
    assert len({images.tobytes() for _, _, images in untrained.starts}) == 4


@pytest.mark.parametrize("shape", [(40,), (40, 2, 2)])
def test_drawn_labels_are_prefixes_as_balanced_as_the_split(shape, rng):
    targets = np.arange(40).reshape(40, *[1] * (len(shape) - 1)) % 3 * np.ones(shape)
    targets = targets.astype(np.uint8)
    seed = int(rng.integers(1000))
    order = methods.draw_labels(targets, seed, 1, 2)
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(order, methods.draw_labels(targets, seed, 1, 2))
    if targets.ndim == 1:
        np.testing.assert_array_equal(targets[order], targets)
    others = [(seed + 1, 1, 2), (seed, 2, 2), (seed, 1, 0)]
    assert all(not np.array_equal(order, methods.draw_labels(targets, *o)) for o in others)


def test_only_the_labels_that_a_cell_uses_are_encoded(config, data, tmp_path, untrained):
    train, test, _ = data
    config.experiment.methods, config.experiment.pretrain_seeds = ("random",), 1
    config.experiment.seeds = 2
    experiment.run(config, tmp_path, train, test, lambda *_: None)
    assert untrained.encoded == [8, 16]  # once for both seeds


@pytest.mark.parametrize("draws", [0, 1])
def test_the_command_reads_labels_blocks_and_the_sizes_of_the_splits(
    config, tmp_path, untrained, draws
):
    config.experiment.methods, config.experiment.labels = ("random",), (8,)
    config.experiment.pretrain_seeds, config.experiment.label_draws = 3, draws
    config.data.synthetic.chips, config.data.synthetic.size = 120, SIZE
    synthetic.prepare(config.data, tmp_path)
    main._experiment(config, tmp_path)
    splits = json.loads((tmp_path / "splits.json").read_text())
    assert (splits["labeled"], splits["test"]) == (12, 24)
    cell = np.load(tmp_path / "cells" / "random-8-0-0-0.npz")
    assert len(cell["blocks"]) >= 3
    assert all("synthetic" in block for block in cell["blocks"].tolist())
    images = [images for _, _, images in untrained.starts]
    assert len({i.tobytes() for i in images}) == (3 if draws else 1)
    labelled = source.open_split(config.data, "labeled").arrays("image")["image"]
    if not draws:
        np.testing.assert_array_equal(images[0], labelled[:8])
    else:  # of all twelve
        known = [chip.tobytes() for chip in labelled]
        assert max(known.index(chip.tobytes()) for i in images for chip in i) >= 8
    assert "Not repeated" in (tmp_path / "report.md").read_text() or draws


def test_other_chips_to_pre_train_on_are_refused_where_there_are_results(
    config, data, tmp_path, untrained, monkeypatch
):
    train, test, _ = data
    config.experiment.methods, config.experiment.labels = ("random",), (8,)
    run = functools.partial(experiment.run, config, tmp_path, train, test, lambda *_: None)
    run()  # the random encoder has seen none
    config.experiment.methods = ("random", "simclr")
    start = functools.partial(starting.Start, origin={})
    monkeypatch.setattr(starting, "from_run", lambda run, variables: start(variables))
    run(unlabelled="500 chips, as they were")
    compose.write(tmp_path)
    config.experiment.pretrain_seeds = 3
    with pytest.raises(InputError, match=r"other data .pretrain: .*, as they were then, 500"):
        run(unlabelled="500 chips with another DEM")
    assert len(list((tmp_path / "cells").glob("*.json"))) == 4


def test_the_command_tells_chips_to_pre_train_on_by_their_elevation(config, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        experiment, "run", lambda *_, unlabelled, **more: given.append(unlabelled) or []
    )
    config.data.synthetic.chips, config.data.synthetic.size = 40, SIZE
    config.experiment.labels, config.batch_size = (4,), 4
    synthetic.prepare(config.data, tmp_path)
    main._experiment(config, tmp_path)
    read = source.Split.__getitem__

    def corrected(split, index):
        record = read(split, index)
        return record | {"elevation": record["elevation"] + (index == 3)}

    monkeypatch.setattr(source.Split, "__getitem__", corrected)
    main._experiment(config, tmp_path)
    assert given[0].startswith("27 chips, ")
    assert given[1].startswith("27 chips, ")
    assert given[0] != given[1]
    config.experiment.methods = ("random",)
    main._experiment(config, tmp_path)
    assert given[2] is None


@pytest.mark.parametrize("first", [0, 1])
def test_a_member_of_an_ensemble_is_trained_once(config, tmp_path, monkeypatch, first):
    rng, fitted, fit = np.random.default_rng(0), [], loop.fit
    inputs = {"s1": rng.normal(-12, 5, (8, SIZE, SIZE, 2)).astype(np.float32)}
    inputs["s2"] = rng.integers(0, 6000, (8, SIZE, SIZE, 3)).astype(np.uint16)
    chips = Labelled(inputs, rng.integers(0, 2, (8, SIZE, SIZE)).astype(np.uint8))
    small = {"model.encoder": "plain", "finetune.head": "plain_unet"}
    recipes = {name: Recipe(name, small, pretrained=False) for name in ("one", "two")}
    recipes["both"] = Recipe("both", {}, members=("one", "two"))
    for name, recipe in recipes.items():
        monkeypatch.setitem(METHODS, name, recipe)
    config.data.inputs, config.finetune.target = ("s1", "s2"), "mask"
    config.data.value_range = (*[(-30.0, 0.0)] * 2, *[(0.0, 6000.0)] * 3)
    config.experiment.methods = ("one", "both", "two") if first else ("both", "one")
    config.experiment.labels, config.experiment.pretrain_seeds = (8,), 1
    config.finetune.frozen_epochs, config.experiment.seeds = 0, 2

    def counted(setup, variables, chips, seed, **kwargs):
        fitted.append(seed)
        return fit(setup, variables, chips, seed, **kwargs)

    monkeypatch.setattr(loop, "fit", counted)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert experiment.run(config, tmp_path, chips, chips, lambda *_: None) == []
    assert sorted(fitted) == [0, 0, 1, 1]  # two members, two seeds
    # The same as members that an ensemble trains for itself.
    (tmp_path / "cells" / "both-8-0-0-1.json").rename(tmp_path / "before.json")
    assert experiment.run(config, tmp_path, chips, chips, lambda *_: None) == []
    assert len(fitted) == 6
    again = json.loads((tmp_path / "cells" / "both-8-0-0-1.json").read_text())
    assert again == json.loads((tmp_path / "before.json").read_text())


def test_results_of_an_earlier_version_are_refused(config, data, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "simclr_elev-80-3.json").write_text("{}")
    with pytest.raises(InputError, match=r"earlier version \(simclr_elev-80-3.json\); use another"):
        experiment.run(config, tmp_path, *data)
    assert not (tmp_path / "panel.npz").exists()


def test_a_rate_that_warms_up_does_so_over_each_label_counts_own_steps(
    config, data, tmp_path, untrained, monkeypatch
):
    make, counts = loop.make_setup, []
    monkeypatch.setattr(
        loop,
        "make_setup",
        lambda c, shape, count: counts.append(count) or make(c, shape, count),
    )
    train, test, _ = data
    config.experiment.methods, config.experiment.pretrain_seeds = ("random",), 1
    experiment.run(config, tmp_path / "a", train, test, lambda *_: None)
    assert counts == [8]
    counts.clear()
    config.optimizer.warmup_epochs = 0.5
    experiment.run(config, tmp_path / "b", train, test, lambda *_: None)
    assert set(counts) == {8, 16}


def test_a_pre_training_that_does_not_fit_ends_it_before_anything_is_written(config, tmp_path):
    config.data.synthetic.chips, config.data.synthetic.size = 40, SIZE
    config.experiment.labels, config.batch_size = (4,), 4
    synthetic.prepare(config.data, tmp_path)
    config.experiment.pretrain.batch_size = 32
    with pytest.raises(InputError, match=r"config.experiment.pretrain.batch_size is 32.*27 chips"):
        main._experiment(config, tmp_path)
    config.experiment.pretrain.batch_size, config.data.rgb = 8, (0, 1, 3)
    with pytest.raises(InputError, match=r"config.data.rgb"):
        main._experiment(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]


def test_drawn_labels_of_one_class_are_refused_before_anything_runs(config, data, tmp_path):
    train, test, pretrained = data
    config.experiment.label_draws = 1
    targets = np.zeros_like(train.targets)
    targets[0] = 1  # the first 8 have both classes; some draw does not
    config.experiment.pretrain_seeds = 20
    with pytest.raises(InputError, match=r"labelled chips .* are all of class 0"):
        experiment.run(config, tmp_path, train._replace(targets=targets), test, pretrained)
    assert not list(tmp_path.iterdir())


def test_a_damaged_panel_is_written_again(config, data, tmp_path, untrained):
    train, test, _ = data
    config.experiment.methods, config.experiment.labels = ("random",), (8,)
    (tmp_path / "panel.npz").write_bytes(b"PK half of it")
    assert experiment.run(config, tmp_path, train, test, lambda *_: None) == []
    assert len(np.load(tmp_path / "panel.npz")["chosen"]) == single.PICTURED


def test_more_labels_than_there_are_end_it_before_anything_is_written(config, data, tmp_path):
    config.experiment.labels = (8, 17)
    with pytest.raises(InputError, match="17 labels are more than"):
        experiment.run(config, tmp_path, *data)
    assert not list(tmp_path.iterdir())
    assert data[0].inputs["image"].shape[1] == SIZE


def test_weights_that_do_not_fit_are_refused_before_anything_is_pre_trained(config, tmp_path):
    config.experiment.methods = ("random", "simclr")
    config.data.synthetic.chips, config.data.synthetic.size = 120, SIZE
    synthetic.prepare(config.data, tmp_path)
    runs.save_run(tmp_path / "wide", runs.settings(width=0.25), (SIZE, SIZE, 3))
    config.experiment.pretrain.init_from = str(tmp_path / "wide")
    settings = methods.config_of(config, "simclr", {"image": (SIZE, SIZE, 3)})
    assert methods.pretrain_config(settings).init_from == str(tmp_path / "wide")
    with pytest.raises(InputError, match=r"has simclr: init_from=.*wide has another encoder"):
        main._experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
