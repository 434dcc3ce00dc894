"""Several tasks on the same pre-trainings."""

import itertools
import json
import time
import types

import jax
import numpy as np
import pytest

from elev_ssl_jax import main
from elev_ssl_jax.checks import check
from elev_ssl_jax.config import comparison
from elev_ssl_jax.data import synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import cells, cost, loop, methods, study
from elev_ssl_jax.finetuning.labelled import Labelled
from elev_ssl_jax.pretraining import loop as pretraining
from elev_ssl_jax.reporting import summary
from elev_ssl_jax.runtime import run_folder, sharding
from tests.pretraining.test_loop import Writer

SHAPES = {"image": (32, 32, 3)}


@pytest.fixture
def config():
    config = comparison("linear")
    config.model.encoder = "vgg"
    config.model.width, config.model.projection = 0.125, (16, 8)
    config.finetune.num_classes = 2
    config.finetune.frozen_epochs = config.epochs = 2
    settings = config.experiment
    settings.methods, settings.tasks = ("statistics", "random", "supervised"), ("probe", "linear")
    settings.labels, settings.pretrain_seeds, settings.label_draws = (16,), 3, 2
    settings.seeds = 1
    settings.pretrain.batch_size, settings.pretrain.epochs = 8, 3
    return config


def make_chips(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 3000, (count, 32, 32, 3)) + 900 * labels[:, None, None, None]
    groups = np.array([f"b{i // 4}" for i in range(count)])
    return Labelled({"image": images.astype(np.uint16)}, labels.astype(np.uint8), groups)


@pytest.fixture
def tasks(config, monkeypatch):
    check(config)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    train, test = make_chips(32, 0), make_chips(40, 1)
    return {
        name: study.Task(its, train, test, None) for name, its in study.configs_of(config).items()
    }


def names_in(folder):
    return {path.stem for path in (folder / "cells").glob("*.json")}


def test_repetitions_are_whole_and_the_budget_ends_after_one(
    config, tasks, tmp_path, monkeypatch, capsys
):
    def of_cells(its, *_):
        its = methods.with_counts(its, 32)
        each = [cell for cell in cells.every(its) if cell.repetition == 0]
        return {cell: 300 / len(each) for cell in cells.every(its)}

    monkeypatch.setattr(cost, "of_cells", of_cells)
    monkeypatch.setattr(cost, "of_pretrainings", lambda *_: {"one": 800, "two": 400})
    for name, task in tasks.items():
        assert (
            set(task.config.experiment.methods)
            == {
                "probe": {"statistics", "random"},
                "linear": {"random", "supervised"},
            }[name]
        )
    config.experiment.budget_hours = 0.3
    with pytest.raises(InputError, match=r"budget_hours is 0.3, but one repetition .* 0\.\d\d h"):
        study.run(config, tmp_path, tasks, None, None)
    assert not any(tmp_path.iterdir())

    config.experiment.budget_hours = 0.7
    clock = iter([0, 0, 1800])  # when it begins, and before each repetition
    monkeypatch.setattr(study, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    run_folder.claim(tmp_path, config, {})
    assert study.run(config, tmp_path, tasks, None, None) == []
    assert "(pre-training 0.33, probe 0.08, linear 0.08), all that are left 1.50 h" in (
        capsys.readouterr().out
    )
    for name, method in itertools.product(tasks, ("random",)):
        assert names_in(tmp_path / name) >= {f"{method}-16-0-{draw}-0" for draw in (0, 1)}
        assert not any("-16-1-" in cell for cell in names_in(tmp_path / name))

    # The same command goes on, and what there was stays.
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/cells/*")}
    config.experiment.budget_hours = 0.0
    monkeypatch.setattr(study, "time", time)
    study.run(config, tmp_path, tasks, None, None)
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    for name in tasks:
        assert len(names_in(tmp_path / name)) == 2 * 2 * 3
    # What is there takes nothing of a budget.
    config.experiment.budget_hours = 0.4
    for path in (tmp_path / "pretrain" / f"{name}-0" for name in ("one", "two")):
        path.mkdir(parents=True)
        (path / "results.json").write_text("{}")
    for path in (tmp_path / "probe" / "cells").glob("*-0-?-*.json"):
        path.unlink()
    monkeypatch.setattr(study, "time", types.SimpleNamespace(monotonic=lambda: 0))
    capsys.readouterr()
    assert study.run(config, tmp_path, tasks, None, None) == []
    assert "takes about 0.08 h by measured steps (probe 0.08)" in capsys.readouterr().out
    # A study may go on with fewer methods than it has results of.
    for its in (config, *(task.config for task in tasks.values())):
        its.experiment.methods = tuple(m for m in its.experiment.methods if m != "statistics")
    run_folder.claim(tmp_path, config, {})
    study.run(config, tmp_path, tasks, None, None)
    assert "band statistics" not in summary.write(tmp_path)
    config.experiment.methods = ("statistics", "random", "supervised")
    tasks["probe"].config.experiment.methods = ("statistics", "random")
    run_folder.claim(tmp_path, config, {})
    study.run(config, tmp_path, tasks, None, None)
    said = summary.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Repeated over 3" not in said  # no question of the study is among these methods
    assert "No question has both its methods" in said
    assert "band statistics" in page
    assert "supervised" in page
    assert "interquartile" not in page  # a single method is in both tasks


def test_tasks_share_pretrainings_and_their_answers_are_on_one_page(config, tmp_path, monkeypatch):
    config.experiment.methods, config.experiment.tasks = ("random", "simclr"), ("probe", "knn")
    config.experiment.pretrain_seeds = 2
    config.data.transfer.update(name="chips/other", split="all", value_range=(0.0, 4000.0))
    check(config)
    train, test = make_chips(32, 0), make_chips(40, 1)
    other, made = make_chips(24, 2), []
    tasks = {
        name: study.Task(its, other if "transfer" in name else train, test, None)
        for name, its in study.configs_of(config).items()
    }
    assert [*tasks] == ["probe", "knn", "probe-transfer", "knn-transfer"]
    its = tasks["knn-transfer"].config
    its.finetune.num_classes = 2  # as the data say
    assert (its.data.name, its.experiment.split) == ("chips/other", "all")
    tasks["probe-transfer"].config.finetune.num_classes = 2
    for name in ("random", "simclr"):
        check(methods.finetune_config(methods.config_of(its, name, SHAPES)), of_experiment=True)
        check(methods.pretrain_config(methods.config_of(config, name, SHAPES)))

    def pretrain(settings, folder):
        made.append(folder.name)
        data = pretraining.Data(train.inputs, test.inputs)
        pretraining.pretrain(settings, folder, data, Writer())

    run_folder.claim(tmp_path, config, {})
    assert study.run(config, tmp_path, tasks, pretrain, None) == []
    assert made == ["simclr-0", "simclr-1"]
    seen = json.loads((tmp_path / "pretrain" / "simclr-0" / "config.json").read_text())["data"]
    assert seen["value_range"] == [0.0, 6000.0]
    found = json.loads(next((tmp_path / "knn-transfer" / "cells").glob("simclr-*")).read_text())
    assert found["data"]["train"].startswith("24 chips")
    said = summary.write(tmp_path)
    assert "SimCLR against no pre-training" in said
    assert "over 4 tables" in said
    assert "Repeated over 2 pre-trainings" in said
    assert (tmp_path / "answers.png").exists()
    page = (tmp_path / "report.html").read_text()
    for part in (
        "interquartile",
        "linear probe",
        "5 nearest elsewhere",
        "is chips/other of",
        "over both",
    ):
        assert part in page
    # The gap of the page is that of the cells.
    means = {
        method: np.mean(
            [
                100 * json.loads(path.read_text())["accuracy"]
                for path in (tmp_path / "knn" / "cells").glob(f"{method}-*.json")
            ]
        )
        for method in ("simclr", "random")
    }
    assert f"{means['simclr'] - means['random']:+.2f}" in page
    # Stopped in the middle of a repetition, it is summed up by those that are whole.
    for path in (tmp_path / "knn" / "cells").glob("*-16-1-*"):
        path.unlink()
    assert "Repeated over 1 pre-training of" in summary.write(tmp_path)
    for path in (tmp_path / "knn-transfer" / "cells").glob("simclr-16-0-*"):
        path.unlink()
    summary.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "No repetition is whole in every task yet." in page
    assert "interquartile" not in page


def test_a_pretraining_that_fails_is_not_tried_for_each_task(config, tmp_path):
    config.experiment.methods, config.experiment.tasks = ("simclr",), ("probe", "knn")
    config.experiment.pretrain_seeds = 1
    train, test, tried = make_chips(32, 0), make_chips(40, 1), []
    tasks = {n: study.Task(c, train, test, None) for n, c in study.configs_of(config).items()}

    def pretrain(settings, folder):
        tried.append(folder.name)
        raise FloatingPointError("the loss is nan")

    failed = study.run(config, tmp_path, tasks, pretrain, None)
    assert tried == ["simclr-0"]
    assert [line.split(":")[0] for line in failed] == ["probe", "knn"]


def test_a_study_is_the_same_on_one_device_and_on_eight(config, tmp_path, monkeypatch, batch_mesh):
    config.experiment.methods, config.experiment.tasks = ("random", "simclr"), ("probe", "linear")
    config.experiment.pretrain_seeds = 1
    # Sums over eight devices are rounded otherwise, which many steps of few chips would make large.
    pretrain = config.experiment.pretrain
    pretrain.batch_size, pretrain.epochs, pretrain.optimizer.learning_rate = 16, 1, 1e-4
    train, test = make_chips(32, 0), make_chips(40, 1)
    data, found = pretraining.Data(train.inputs, test.inputs), {}
    for devices in (1, 8):
        monkeypatch.setattr(
            sharding, "make_mesh", lambda some=None, n=devices: batch_mesh(len(some or range(n)))
        )
        monkeypatch.setattr(jax, "local_devices", lambda n=devices: jax.devices()[:n])
        tasks = {n: study.Task(c, train, test, None) for n, c in study.configs_of(config).items()}
        run = tmp_path / str(devices)
        run.mkdir()
        run_folder.claim(run, config, {})
        assert (
            study.run(
                config, run, tasks, lambda s, f: pretraining.pretrain(s, f, data, Writer()), None
            )
            == []
        )
        summary.write(run)
        found[devices] = (run / "report.md").read_text()
    assert found[1] == found[8]


def test_costs_are_steps_by_their_number(config, tasks, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(cost, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    config.experiment.methods = ("random", "simclr")
    chips = tasks["probe"].train.inputs
    # A second for the first step, and one for the five after it; 3 epochs of 4 steps.
    assert cost.of_pretrainings(config, tasks, chips) == pytest.approx({"simclr": 1 + 12 / 5})

    def fit(setup, variables, chips, seed, **kwargs):
        for number in range(5):
            yield types.SimpleNamespace(loss=np.float32(number))

    monkeypatch.setattr(loop, "fit", fit)
    its = tasks["linear"]
    # A second an epoch: of random 2 + 2 of them, supervised 2, both twice.
    found = cost.of_cells(its.config, its.train, its.test)
    assert sum(found.values()) == pytest.approx(3 * 2 * (4 + 2))
    assert {found[cell] for cell in found if cell.method == "random"} == {4.0}
    assert cost.of_cells(tasks["probe"].config, its.train, its.test) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experiment.tasks": ("probe", "nearest")}, "different ones of linear, unet, probe, knn"),
        (
            {
                "experiment.tasks": (),
                "experiment.methods": ("random",),
                "experiment.budget_hours": 1.0,
            },
            "0 without experiment.tasks",
        ),
        ({"experiment.tasks": ("linear",)}, "another with statistics"),
        ({"finetune.target": "label"}, "'' or 'commonest' with experiment.tasks"),
    ],
)
def test_studies_that_cannot_be_are_refused(config, changes, said):
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=said):
        check(config)


def test_where_pixels_are_told_chips_have_the_masks_commonest_class(config):
    config.experiment.methods, config.experiment.tasks = ("random",), ("unet", "knn")
    check(config)
    made = study.configs_of(config)
    assert made["unet"].finetune.target == ""
    assert made["knn"].finetune.target == "commonest"
    config.experiment.tasks, config.finetune.target = ("probe", "knn"), "commonest"
    check(config)
    assert study.configs_of(config)["knn"].finetune.target == "commonest"


def test_on_other_ground_the_scale_is_measured_there(config):
    config.experiment.methods, config.experiment.tasks = ("random",), ("knn",)
    config.data.mean, config.data.std = (300.0,), (40.0,)
    config.data.transfer.name = "chips/other"
    check(config)
    its = study.configs_of(config)["knn-transfer"]
    assert tuple(its.data.mean) == tuple(its.data.std) == ("auto",)
    config.data.transfer.validation_split = "labeled[8:]"
    config.experiment.methods = ("random", "from_mine")
    its = study.configs_of(config)["knn-transfer"]
    assert its.data.validation_split == "labeled[8:]"
    assert its.experiment.methods == ("random",)  # a given encoder has a sensor of its own
    config.data.mean = config.data.std = ()
    assert not study.configs_of(config)["knn-transfer"].data.std


def test_the_command_tries_encoders_on_ground_of_other_sensors(config, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(study, "run", lambda c, w, tasks, *_, **more: given.update(tasks) or [])
    other = config.copy_and_resolve_references()
    other.data.inputs = ("s1", "s2")
    for its, size, folder in ((config, 40, tmp_path), (other, 60, tmp_path / "other")):
        its.data.synthetic.chips, its.data.synthetic.size = size, 32
        its.data.name = "chips/segmentation"
        synthetic.prepare(its.data, folder)
        its.data.synthetic.chips = 0
    config.experiment.methods, config.experiment.tasks = ("random", "simclr"), ("unet", "knn")
    config.experiment.labels, config.batch_size = (4,), 4
    config.data.transfer.update(
        name=other.data.name, dir=other.data.dir, inputs=("s2",), bands=(3, 2, 1)
    )
    check(config)
    main._experiment(config, tmp_path)
    assert [*given] == ["unet", "knn", "unet-transfer", "knn-transfer"]
    assert {name: task.train.inputs.keys() for name, task in given.items()} == {
        "unet": {"image"},
        "knn": {"image"},
        "unet-transfer": {"s2"},
        "knn-transfer": {"s2"},
    }
    # What tasks have in common is read once.
    assert given["unet"].train.inputs["image"] is given["knn"].train.inputs["image"]
    for low, high in given["knn-transfer"].config.data.value_range:
        assert 0 <= low < high
    # What doesn't fit there is said before anything is pre-trained.
    given.clear()
    for changes, said in (
        ({"bands": (3, 2)}, "simclr is pre-trained on 3 bands, but of .* it would see 2;"),
        ({"split": "labeled[:3]"}, "4 labels are more than .* has: 3"),
    ):
        wrong = config.copy_and_resolve_references()
        wrong.data.transfer.update(changes)
        with pytest.raises(InputError, match=said):
            main._experiment(wrong, tmp_path)
    wrong = config.copy_and_resolve_references()
    wrong.data.validation_split = "labeled[2:]"
    with pytest.raises(InputError, match=r"split='labeled' and .* have 2 chips of .* in common"):
        main._experiment(wrong, tmp_path)
    wrong.data.validation_split, wrong.experiment.methods = "", ("random", "simclr_ndvi")
    with pytest.raises(InputError, match=r"methods has simclr_ndvi: .*near_infrared must say"):
        main._experiment(wrong, tmp_path)
    assert not given
