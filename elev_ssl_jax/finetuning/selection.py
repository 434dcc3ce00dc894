"""Which epoch of a fine-tuning counts: the best one on chips to validate on, if there are any."""

import math
from typing import Any

import orbax.checkpoint as ocp
from jax.sharding import Mesh

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import checkpoint
from elev_ssl_jax.runtime.train_state import TrainState

_NONE = 0, -math.inf


class Best:
    """The best epoch so far, which has a checkpoint of its own beside the last ones.

    It is saved after these, so that it is never ahead of them. Where a run was killed in between,
    the last one is the best.
    """

    def __init__(
        self,
        checkpoints: ocp.CheckpointManager,
        mesh: Mesh,
        state: TrainState,
        epoch: int,
        before: dict[str, Any],
    ):
        """Of a run that begins or goes on.

        Args:
          checkpoints: Of its folder `best`.
          mesh: The devices.
          state: That it begins with, or goes on from.
          epoch: Of that.
          before: What the checkpoint says that it goes on from; {} if it begins, so that what is
            there was left by another.

        Raises:
          InputError: The best epoch is gone.
        """
        self._checkpoints, self._mesh = checkpoints, mesh
        for stale in () if before else checkpoints.all_steps():
            checkpoints.delete(stale)
        _, about = checkpoint.restore_latest(checkpoints, state, mesh)
        self.epoch, self.score = about.get("best", _NONE)
        wanted, score = before.get("best", _NONE)
        if self.epoch < wanted == epoch:
            self.offer(epoch, score)
            self.keep(state, before)
        if self.epoch != wanted:
            folder = checkpoints.directory.parent
            raise InputError(
                f"{folder} lacks the run's best epoch, {wanted}; use another --workdir"
            )

    def offer(self, epoch: int, score: float) -> bool:
        """Whether an epoch is better than those before; `keep` must follow then."""
        if better := score > self.score:
            self.epoch, self.score = epoch, score
        return better

    def keep(self, state: TrainState, about: dict[str, Any]) -> None:
        """Saves the epoch that was the best when it was offered, and has a checkpoint already."""
        checkpoint.save(self._checkpoints, state, about)

    def is_over(self, epoch: int, patience: int) -> bool:
        """Whether none of the `patience` epochs up to this one is the best; 0 is never."""
        return 0 < patience <= epoch - self.epoch

    def variables(self, like: TrainState) -> dict[str, Any]:
        """The model's, after the best epoch."""
        self._checkpoints.wait_until_finished()
        return checkpoint.restore_latest(self._checkpoints, like, self._mesh)[0].variables
