import jax
import numpy as np
import optax
import pytest

from elev_ssl_jax import main
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.data import synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop
from elev_ssl_jax.finetuning.selection import Best
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.runtime import checkpoint, sharding
from elev_ssl_jax.runtime.train_state import TrainState
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
    assert run(tmp_path / "parts", first=2) == scores
    # Called again, it has nothing to do; with more patience it goes on.
    assert run(tmp_path / "parts", first=6) == scores
    config.finetune.patience = 0
    longer = run(tmp_path / "parts", first=4)
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


def test_epochs_are_offered_in_any_order_and_only_better_ones_kept(tmp_path, batch_mesh):
    def state(step):
        kernel = np.full((2, 2), float(step), np.float32)
        made = TrainState.create({"params": {"encoder": {"kernel": kernel}}}, optax.sgd(0.1))
        return made.replace(step=np.int32(step))

    about = checkpoint.describe(fine_tuning("linear"), steps=9, shapes={"image": (8, 8, 3)})
    with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
        best = Best(checkpoints, state(0), batch_mesh(1))
        for epoch, score in ((1, 0.5), (4, 0.7), (5, 0.7)):
            best.offer(epoch, score, state(epoch), about)
        assert (best.epoch, best.score) == (4, 0.7)
        assert [best.is_over(epoch, 2) for epoch in (4, 5, 6)] == [False, False, True]
        assert not best.is_over(100, 0)
        # Gone on with from before the best, by a schedule that does better.
        checkpoints.wait_until_finished()
        again = Best(checkpoints, state(0), batch_mesh(1))
        again.offer(3, 0.7, state(3), about)
        again.offer(3, 0.8, state(3), about)
        found = again.variables(state(0), batch_mesh(1))
    np.testing.assert_array_equal(found["params"]["encoder"]["kernel"], 3.0)
    assert checkpoint.steps(tmp_path) == [3]
