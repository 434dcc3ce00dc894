"""Checkpoints of a run, by Orbax: atomic, kept while the next steps run, restored anywhere."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from elev_ssl_jax import sharding
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.train_state import TrainState


def open_checkpoints(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints in `workdir`, of which the last `keep` are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    return ocp.CheckpointManager(workdir.absolute() / "checkpoints", options=options)


def save(checkpoints: ocp.CheckpointManager, state: TrainState) -> None:
    """Saves in the background; a checkpoint has its name only when it is whole."""
    checkpoints.save(int(state.step), args=ocp.args.StandardSave(state))


def restore_latest(
    checkpoints: ocp.CheckpointManager, state: TrainState, mesh: Mesh
) -> TrainState:
    """The newest state, on the devices of `mesh`; `state` itself if there is none.

    Args:
      checkpoints: From `open_checkpoints`.
      state: A state of the same structure and shapes.
      mesh: Any mesh, not only the one the run was saved on.

    Raises:
      InputError: The checkpoint belongs to another model, or can't be read.
    """
    step = checkpoints.latest_step()
    if step is None:
        return state
    # Without shardings of our own Orbax insists on the devices that the checkpoint came from.
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), state
    )
    try:
        return checkpoints.restore(step, args=ocp.args.StandardRestore(target))
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{checkpoints.directory}/{step} can't be restored into this model ({reason}); use "
            "another --workdir, or delete that folder to fall back on an older one"
        ) from error
