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

    It is never ahead of these: an epoch that is better has one of either, and where a run goes on,
    the epoch that it goes on from is offered again.
    """

    def __init__(
        self, checkpoints: ocp.CheckpointManager, template: TrainState, mesh: Mesh, *, new: bool
    ):
        """As `checkpoint.restore_latest`, of the checkpoints in the run's folder `best`.

        What is there of a run that had no other checkpoint yet goes, if this one is `new`.
        """
        self._checkpoints = checkpoints
        for stale in checkpoints.all_steps() if new else ():
            checkpoints.delete(stale)
        about = {} if new else checkpoint.restore_latest(checkpoints, template, mesh)[1]
        self.epoch, self.score = about.get("best", (0, -math.inf))

    def offer(self, epoch: int, score: float) -> bool:
        """Whether an epoch is better than those before; `keep` must follow then."""
        if better := score > self.score:
            self.epoch, self.score = epoch, score
        return better

    def keep(self, state: TrainState, about: dict[str, Any]) -> None:
        """Saves the epoch that was the best when it was offered."""
        checkpoint.save(self._checkpoints, state, about)

    def is_over(self, epoch: int, patience: int) -> bool:
        """Whether none of the `patience` epochs up to this one is the best; 0 is never."""
        return 0 < patience <= epoch - self.epoch

    def variables(self, template: TrainState, mesh: Mesh) -> dict[str, Any]:
        """The model's, after the best epoch."""
        self._checkpoints.wait_until_finished()
        return checkpoint.restore_latest(self._checkpoints, template, mesh)[0].variables
