import shutil

import jax
import numpy as np
import pytest

from elev_ssl_jax import main
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.data import synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.runtime import checkpoint, sharding
from tests.pretraining.test_loop import Writer

SIZE = 32


@pytest.fixture
def config():
    config = fine_tuning("linear")
    config.model.width, config.finetune.num_classes = 0.125, 2
    config.finetune.frozen_epochs, config.epochs = 1, 6
    config.optimizer.learning_rate = 1e-3
    config.data.validation_split = "labeled[16:]"
    config.checkpoint.every_epochs = 2
    return config


def make_chips(count, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    images = rng.integers(0, 3000, (count, SIZE, SIZE, 3)) + 900 * label[:, None, None, None]
    return labelled.Labelled({"image": images.astype(np.uint16)}, label.astype(np.uint8))


class Judged:
    """Says of the validation chips what it is told, epoch by epoch, of others what is so."""

    def __init__(self, right, count):
        self.right, self.count, self.judge = right, count, loop.judge

    def __call__(self, setup, variables, chips, *more, **named):
        matrix, classes = self.judge(setup, variables, chips, *more, **named)
        if len(chips.targets) != self.count:
            return matrix, classes
        right = next(self.right)
        return np.array([[right, 10 - right], [10 - right, right]]), classes


def test_the_best_epoch_on_validation_chips_counts(
    config, tmp_path, monkeypatch, batch_mesh, capsys
):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    train, test, validation = make_chips(16, 0), make_chips(10, 1), make_chips(6, 2)
    config.finetune.patience = 2
    right = [5, 9, 8, 9, 10, 10]  # the second is best, and the fourth no better

    def run(folder, first=0, writer=None):
        monkeypatch.setattr(loop, "judge", Judged(iter(right[first:]), 6))
        try:
            return loop.finetune(config, folder, train, test, writer or Writer(), validation)
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))

    scores = run(tmp_path / "whole")
    wanted = {"split": "labeled[16:]", "epoch": 2, "of": 4, "macro_f1": pytest.approx(0.9)}
    assert scores["validation"] == wanted
    assert "epoch 2 of 4 counts" in capsys.readouterr().out
    # What is loaded, to predict or to start from, is that epoch, and the run is whole.
    setup = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, 16)
    variables = loop.init(setup, 0, (SIZE, SIZE, 3))
    states = [
        jax.device_get(epoch.state.variables)
        for epoch in loop.fit(setup, variables, train, config.seed)
        if epoch.stage == "full"
    ]
    model = inference.load(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, dict(model.variables), states[1])
    assert model.step == 4 * 2
    matrix, _ = loop.judge(setup, model.variables, test)
    np.testing.assert_array_equal(matrix, scores["confusion_matrix"])

    # Killed in its third epoch, when the last checkpoint is of the second.
    class Stop(Exception):
        pass

    class Stopping(Writer):
        def write_scalars(self, step, scalars):
            if step == 4:
                raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "parts", writer=Stopping())
    # Where it goes on, and when it is called again and has nothing to do, the last is judged again.
    assert run(tmp_path / "parts", first=1) == scores
    assert run(tmp_path / "parts", first=3) == scores
    config.finetune.patience = 0
    longer = run(tmp_path / "parts", first=3)
    assert longer["validation"] == wanted | {"epoch": 5, "of": 6, "macro_f1": 1.0}
    best = checkpoint.load(tmp_path / "parts").variables
    jax.tree.map(np.testing.assert_array_equal, dict(best), states[4])


def test_an_epoch_is_judged_by_what_the_model_says_of_the_chips(
    config, tmp_path, monkeypatch, batch_mesh
):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    train, test, validation = make_chips(16, 0), make_chips(10, 1), make_chips(6, 2)
    writer = Writer()
    scores = loop.finetune(config, tmp_path, train, test, writer, validation)
    said = [s["validation_macro_f1"] for s in writer.scalars.values() if "validation_macro_f1" in s]
    assert len(said) == 6
    assert scores["validation"]["macro_f1"] == max(said)
    assert scores["validation"]["epoch"] == 1 + said.index(max(said))
    setup = loop.make_setup(config, {"image": (SIZE, SIZE, 3)}, 16)
    matrix, _ = loop.judge(setup, checkpoint.load(tmp_path).variables, validation)
    recall = np.diag(matrix) / matrix.sum(axis=1)
    precision = np.diag(matrix) / np.maximum(matrix.sum(axis=0), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert scores["validation"]["macro_f1"] == pytest.approx(f1.mean())
    other = validation._replace(targets=1 - validation.targets)
    with pytest.raises(InputError, match=r"other data .validation: "):
        loop.finetune(config, tmp_path, train, test, Writer(), other)


@pytest.mark.parametrize("split", ["test[:10]", "labeled[8:]"])
def test_validation_chips_are_neither_learned_from_nor_judged_by(config, tmp_path, split):
    config.data.synthetic.chips, config.data.synthetic.size = 120, SIZE
    synthetic.prepare(config.data, tmp_path)
    config.data.split, config.data.validation_split = "labeled[:10]", split
    with pytest.raises(InputError, match=r"config.data.validation_split=.* in common; choose"):
        main._finetune(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_killed_run_left_is_not_the_best_of_another(
    config, tmp_path, monkeypatch, batch_mesh
):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    train, test, validation = make_chips(16, 0), make_chips(10, 1), make_chips(6, 2)
    config.epochs = 3
    alone = loop.finetune(config, tmp_path / "alone", train, test, Writer(), validation)
    # One that had its best epoch saved, and no other.
    shutil.copytree(tmp_path / "alone" / "best", tmp_path / "run" / "best")
    config.seed = 7
    other = loop.finetune(config, tmp_path / "run", train, test, Writer(), validation)
    config.seed = 0
    again = loop.finetune(config, tmp_path / "alone", train, test, Writer(), validation)
    assert again == alone
    assert checkpoint.load(tmp_path / "run" / "best").about["config"]["seed"] == 7
    assert other["validation"]["epoch"] >= 1
    # And without its best epoch a run says so, rather than judge what it hasn't.
    before = (tmp_path / "run" / "results.json").read_text()
    shutil.rmtree(tmp_path / "run" / "best")
    config.seed = 7
    if other["validation"]["epoch"] < 3:
        with pytest.raises(InputError, match=r"best lacks the run's best epoch, [12]; use another"):
            loop.finetune(config, tmp_path / "run", train, test, Writer(), validation)
    assert (tmp_path / "run" / "results.json").read_text() == before


def test_less_patience_than_a_run_had_ends_it_after_an_epoch_more(
    config, tmp_path, monkeypatch, batch_mesh
):
    monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
    train, test, validation = make_chips(16, 0), make_chips(10, 1), make_chips(6, 2)

    class Stop(Exception):
        pass

    class Stopping(Writer):
        def write_scalars(self, step, scalars):
            if step == 6:  # the fifth epoch, after a checkpoint of the fourth
                raise Stop

    judged = Judged(iter([9, 5, 5, 5, 5, 5]), 6)
    monkeypatch.setattr(loop, "judge", judged)
    with pytest.raises(Stop):
        loop.finetune(config, tmp_path, train, test, Stopping(), validation)
    config.finetune.patience = 2
    monkeypatch.setattr(loop, "judge", Judged(iter([5, 5]), 6))
    scores = loop.finetune(config, tmp_path, train, test, Writer(), validation)
    assert (scores["validation"]["epoch"], scores["validation"]["of"]) == (1, 5)
    assert inference.load(tmp_path).step == 5 * 2
