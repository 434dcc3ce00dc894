"""Which epoch of a fine-tuning counts: the best one on chips to validate on, if there are any."""

import math
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from elev_ssl_jax.runtime import checkpoint
from elev_ssl_jax.runtime.train_state import TrainState

SCORE = "macro_f1"  # that epochs are compared by: rare classes count as much as common ones


class Best:
    """The best epoch so far, which has a checkpoint of its own beside the last ones.

    Of a run that is killed it may be ahead of these. The epochs in between then come again, to the
    same bits, and none of them is better.
    """

    def __init__(self, checkpoints: ocp.CheckpointManager, template: TrainState, mesh: Mesh):
        """As `checkpoint.restore_latest`, of the checkpoints in the run's folder `best`."""
        self._checkpoints = checkpoints
        _, about = checkpoint.restore_latest(checkpoints, template, mesh)
        self.epoch, self.score = about.get("best", (0, -math.inf))

    def offer(self, epoch: int, score: float, state: TrainState, about: dict[str, Any]) -> None:
        """Keeps an epoch if it is better than those before."""
        if not score > self.score:
            return
        # Where a run goes on from before its best epoch by another schedule.
        for stale in self._checkpoints.all_steps():
            if stale >= int(state.step):
                self._checkpoints.delete(stale)
        self.epoch, self.score = epoch, score
        checkpoint.save(self._checkpoints, state, {**about, "best": (epoch, score)})

    def is_over(self, epoch: int, patience: int) -> bool:
        """Whether none of the `patience` epochs up to this one is the best; 0 is never."""
        return 0 < patience <= epoch - self.epoch

    def variables(self, template: TrainState, mesh: Mesh) -> dict[str, Any]:
        """The model's, after the best epoch."""
        self._checkpoints.wait_until_finished()
        return checkpoint.restore_latest(self._checkpoints, template, mesh)[0].variables
