import shutil

import jax
import numpy as np
import pytest

from elev_ssl_jax import main
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.data import synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop, single, step
from elev_ssl_jax.finetuning.selection import Best
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.runtime import checkpoint, sharding
from tests import runs
from tests.pretraining.test_loop import Stop, Stopping, Writer

SIZE = 32


@pytest.fixture
def config():
    config = fine_tuning("linear")
    config.model.encoder = "vgg"
    config.model.width, config.finetune.num_classes = 0.125, 2
    config.finetune.frozen_epochs, config.epochs = 1, 6
    config.optimizer.learning_rate = 1e-3
    config.data.validation_split = "labeled[16:]"
    config.checkpoint.every_epochs = 2
    return config


@pytest.fixture(autouse=True)
def _one_device(monkeypatch, batch_mesh):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))


def make_chips(count, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    images = rng.integers(0, 3000, (count, SIZE, SIZE, 3)) + 900 * label[:, None, None, None]
    return labelled.Labelled({"image": images.astype(np.uint16)}, label.astype(np.uint8))


@pytest.fixture
def finetune(config, monkeypatch):
    """Fine-tunes in a folder, where the validation chips are told with so many of ten right."""
    train, test, validation = (make_chips(count, i) for i, count in enumerate((16, 10, 6)))

    def run(folder, right=(), writer=None, validation=validation):
        following, judge = iter(right), step.judge

        def told(setup, variables, chips, *more, **named):
            matrix, classes = judge(setup, variables, chips, *more, **named)
            if right and len(chips.targets) == 6:
                ten = next(following)
                matrix = np.array([[ten, 10 - ten], [10 - ten, ten]])
            return matrix, classes

        with monkeypatch.context() as patch:
            patch.setattr(single, "judge", told)
            return single.finetune(
                config, folder, train, test, writer or Writer(), validation=validation
            )

    run.train, run.test, run.validation = train, test, validation
    return run


def test_the_best_epoch_on_validation_chips_counts(config, finetune, tmp_path, capsys):
    config.finetune.patience = 2
    right = [5, 9, 8, 9, 10, 10]  # the second is best, and the fourth no better
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    scores = finetune(whole, right)
    wanted = {"split": "labeled[16:]", "epoch": 2, "of": 4, "macro_f1": pytest.approx(0.9)}
    assert scores["validation"] == wanted
    assert "epoch 2 of 4 counts" in capsys.readouterr().out
    # What is loaded, to predict or to start from, is that epoch, and the run is whole.
    setup = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, 16)
    variables = loop.init(setup, 0, (SIZE, SIZE, 3))
    states = [
        jax.device_get(epoch.state.variables)
        for epoch in loop.fit(setup, variables, finetune.train, config.seed)
        if epoch.stage == "full"
    ]
    model = inference.load(whole)
    jax.tree.map(np.testing.assert_array_equal, dict(model.variables), states[1])
    assert model.step == 4 * 2
    matrix, _ = step.judge(setup, model.variables, finetune.test)
    np.testing.assert_array_equal(matrix, scores["confusion_matrix"])

    # Killed in its third epoch, when the last checkpoint is of the second.
    with pytest.raises(Stop):
        finetune(parts, right, Stopping(4))
    assert finetune(parts, right[2:]) == scores
    # Called again, it has nothing to do; with more patience it goes on.
    assert finetune(parts, [0]) == scores
    config.finetune.patience = 0
    longer = finetune(parts, right[4:])
    assert longer["validation"] == wanted | {"epoch": 5, "of": 6, "macro_f1": 1.0}
    best = checkpoint.load(parts).variables
    jax.tree.map(np.testing.assert_array_equal, dict(best), states[4])
    assert (
        checkpoint.load(parts).about["checksum"]
        == checkpoint.load(parts / "best").about["checksum"]
    )


def test_an_epoch_is_judged_by_what_the_model_says_of_the_chips(config, finetune, tmp_path):
    writer, validation = Writer(), finetune.validation
    scores = finetune(tmp_path, writer=writer)
    said = [s["validation_macro_f1"] for s in writer.scalars.values() if "validation_macro_f1" in s]
    assert len(said) == 6
    assert scores["validation"]["macro_f1"] == max(said)
    assert scores["validation"]["epoch"] == 1 + said.index(max(said))
    setup = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, 16)
    matrix, _ = step.judge(setup, checkpoint.load(tmp_path).variables, validation)
    recall = np.diag(matrix) / matrix.sum(axis=1)
    precision = np.diag(matrix) / np.maximum(matrix.sum(axis=0), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert scores["validation"]["macro_f1"] == pytest.approx(f1.mean())
    other = validation._replace(targets=1 - validation.targets)
    with pytest.raises(InputError, match=r"other data .validation: "):
        finetune(tmp_path, validation=other)


@pytest.mark.parametrize("split", ["test[:10]", "labeled[8:]"])
def test_validation_chips_are_neither_learned_from_nor_judged_by(config, tmp_path, split):
    config.data.synthetic.chips, config.data.synthetic.size = 120, SIZE
    synthetic.prepare(config.data, tmp_path)
    config.data.split, config.data.validation_split = "labeled[:10]", split
    with pytest.raises(InputError, match=r"config.data.validation_split=.* in common; choose"):
        main._finetune(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_killed_run_left_is_not_the_best_of_another(config, finetune, tmp_path):
    config.epochs = 3
    finetune(tmp_path / "one", [9, 5, 5])
    # Of one that was killed while its first checkpoint was under way.
    shutil.copytree(tmp_path / "one" / "best", tmp_path / "other" / "best")
    config.seed = 7
    scores = finetune(tmp_path / "other", [5, 8, 5])
    assert (scores["validation"]["epoch"], scores["validation"]["macro_f1"]) == (2, 0.8)
    assert checkpoint.load(tmp_path / "other" / "best").about["config"]["seed"] == 7


def test_without_its_best_epoch_a_run_says_so_and_judges_nothing(config, finetune, tmp_path):
    config.epochs = 2
    finetune(tmp_path, [9, 5])
    before = (tmp_path / "results.json").read_bytes()
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(InputError, match=r"best lacks the run's best epoch, 1; use another"):
        finetune(tmp_path, [0])
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_run_killed_between_the_two_saves_of_its_best_epoch_makes_it_good(
    config, finetune, tmp_path, monkeypatch
):
    def killed(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Best, "keep", killed)
        with pytest.raises(Stop):
            finetune(tmp_path, [9])
    assert checkpoint.steps(tmp_path) == [2]
    assert checkpoint.steps(tmp_path / "best") == []
    config.epochs = 6
    scores = finetune(tmp_path, [5, 5, 5, 5, 5])
    assert (scores["validation"]["epoch"], scores["validation"]["of"]) == (1, 6)


def test_less_patience_than_a_run_had_ends_it_after_an_epoch_more(config, finetune, tmp_path):
    with pytest.raises(Stop):
        finetune(tmp_path, [9, 5, 5, 5], Stopping(6))  # after a checkpoint of the fourth epoch
    config.finetune.patience = 2
    scores = finetune(tmp_path, [5, 5])
    assert (scores["validation"]["epoch"], scores["validation"]["of"]) == (1, 5)
    assert inference.load(tmp_path).step == 5 * 2


def test_where_a_run_comes_from_is_what_it_was_when_it_began(config, finetune, tmp_path):
    settings = runs.settings()
    settings.model.encoder = config.model.encoder
    runs.save_run(tmp_path / "first", settings, (SIZE, SIZE, 3), step=4, steps=4)
    config.init_from, config.epochs = str(tmp_path / "first"), 2
    with pytest.raises(Stop):
        finetune(tmp_path / "run", [5, 5], Stopping(3))
    runs.save_run(tmp_path / "first", settings, (SIZE, SIZE, 3), step=8, steps=8, seed=1)
    finetune(tmp_path / "run", [5])
    assert checkpoint.load(tmp_path / "run").about["origin"]["step"] == 4
