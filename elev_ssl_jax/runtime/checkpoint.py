"""Checkpoints of a run, by Orbax: atomic, kept while the next steps run, restored anywhere."""

import functools
import json
import logging
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from elev_ssl_jax import storage
from elev_ssl_jax.errors import InputError, undisturbed
from elev_ssl_jax.runtime import sharding
from elev_ssl_jax.runtime.train_state import TrainState

# Raised by whatever makes the same weights give other outputs, or the same steps other weights.
# 2: PyTorch's nearest upsampling, unbiased running variances, checksums.
FORMAT = 2
_TO_SAVE = 300  # seconds that processes wait for one another's part of a checkpoint
BEST = "best"  # folder of a run with its best epoch, if that is not its last


class Saved(NamedTuple):
    """A run's last checkpoint."""

    step: int
    about: dict[str, Any]  # what `describe` said of the run
    variables: dict[str, Any]  # the model's, on the first device


def open_checkpoints(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """The checkpoints in `workdir`, of which the last `keep` are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    if jax.process_count() > 1:  # by default for 20 minutes
        options.async_options = ocp.AsyncOptions(timeout_secs=_TO_SAVE)
    folder = workdir if storage.in_bucket(workdir) else workdir.absolute()
    folder /= "checkpoints"
    found = steps(workdir)
    # It reads what is said of each, and its errors don't say of which.
    with _damage_told(folder / (str(found[0]) if len(found) == 1 else "NUMBER")):
        if not storage.in_bucket(folder):
            _check_files(folder)
        return ocp.CheckpointManager(
            folder, item_handlers=ocp.StandardCheckpointHandler(), options=options
        )


def _check_files(folder: Path) -> None:
    """Orbax would wait for a pipe."""
    for path in folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is no file")


@contextmanager
def _silent_absl() -> Iterator[None]:
    """Of damaged files Orbax logs pages."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl.setLevel(level)


def describe(
    config: Any,
    *,
    steps: int,
    shapes: Mapping[str, tuple[int, ...]],
    data: dict[str, str] | None = None,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of its run, so that its weights can be used without anything else.

    Args:
      config: The run's configuration.
      steps: Of the whole run.
      shapes: Of the features of a chip that it uses.
      data: Fingerprints of what it learns from and is judged by.
      origin: Of the weights that it started from, if there were any: see `starting`.
    """
    about = {
        "format": FORMAT,
        "config": config.to_dict(),
        "steps": steps,
        "commit": commit(),
        "data": data,
        "shapes": dict(shapes),
        "origin": origin,
    }
    return json.loads(json.dumps(about))  # as it will come back: JSON has no tuples


@functools.cache
def commit() -> str:
    """The program's commit, with "-dirty" if files have changed since; "" outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not that of a folder around it
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return ""


def steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints that are whole, in order."""
    with storage.told(run):
        paths = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
        # In a bucket nothing is renamed: what isn't whole lacks a file that says so.
        whole = [path for path in paths if ocp.utils.is_checkpoint_finalized(path)]
    return sorted(int(path.name) for path in whole)


def save(checkpoints: ocp.CheckpointManager, state: TrainState, about: dict[str, Any]) -> None:
    """Saves in the background; a checkpoint has its name only when it is whole."""
    # On the host: Orbax cuts what several devices hold into a part for each, by as many programs,
    # whose compiling takes longer than the smallest training.
    state = jax.device_get(state)
    about = {**about, "checksum": _checksum(state, about)}
    arguments = ocp.args.StandardSave(state, custom_metadata=about)
    with undisturbed():  # what is begun here goes on in the background, and is waited for
        checkpoints.save(int(state.step), args=arguments)


def _checksum(state: Any, about: dict[str, Any]) -> int:
    """Of all numbers of a state and what is said of it, which neither disks nor Orbax guard."""
    leaves = sorted(
        zlib.crc32(
            np.ascontiguousarray(leaf).data, zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode())
        )
        for leaf in jax.tree.leaves(jax.device_get(state))
    )
    said = {name: value for name, value in about.items() if name != "checksum"}
    return zlib.crc32(json.dumps([leaves, said], sort_keys=True).encode())


def restore_latest(
    checkpoints: ocp.CheckpointManager, state: TrainState, mesh: Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """The newest state, on the devices of `mesh`, and what `describe` said of its run.

    `state` itself, and nothing, if there is no checkpoint.

    Args:
      checkpoints: From `open_checkpoints`.
      state: A state of the same structure and shapes.
      mesh: Any mesh, not only the one the run was saved on.

    Raises:
      InputError: The checkpoint belongs to another model, or can't be read.
    """
    step = checkpoints.latest_step()
    if step is None:
        return state, {}
    tree, about = _metadata(checkpoints, step)
    _check_format(about, checkpoints.directory.parent)
    if found := differing(tree["params"], state.params):
        raise InputError(
            f"{checkpoints.directory / str(step)} is not of this model ({found}); use another "
            "--workdir"
        )
    # Without shardings of our own Orbax insists on the devices that the checkpoint came from.
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
        state,
    )
    return _restore(checkpoints, step, target, about), about


def _metadata(checkpoints: ocp.CheckpointManager, step: int) -> tuple[Any, dict[str, Any]]:
    """Shapes and types of a checkpoint's arrays, and what `save` was told of them."""
    with _damage_told(checkpoints.directory / str(step)):
        metadata = checkpoints.item_metadata(step)
        for leaf in jax.tree.leaves(metadata.tree):
            _ = leaf.shape, leaf.dtype  # damaged, it may have neither
        return metadata.tree, metadata.custom_metadata or {}


def _check_format(about: dict[str, Any], run: Path) -> None:
    if not {"config", "steps"} <= about.keys() or not {"shapes", "image_shape"} & about.keys():
        raise InputError(f"{run} holds checkpoints of another program; name a run of this one")
    theirs = about.get("format", 1)
    if theirs != FORMAT:
        raise InputError(
            f"{run} holds checkpoints of another version of this program (format {theirs}; here it "
            f"is {FORMAT}), which computes otherwise; use that version, or train again in another "
            "--workdir"
        )


def _restore(
    checkpoints: ocp.CheckpointManager, step: int, target: Any, about: dict[str, Any]
) -> Any:
    with _damage_told(checkpoints.directory / str(step)):
        state = checkpoints.restore(step, args=ocp.args.StandardRestore(target))
        if about.get("checksum") != _checksum(state, about):
            raise ValueError("its numbers are not those that were saved")
        return state


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Of damaged files Orbax and what lies below it raise whatever comes."""
    sys.unraisablehook = _unless_loop_closed  # as reads say that are left under way
    try:
        with _silent_absl():
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text:
            raise
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of the reads left under way
        reason = (text.splitlines() or [type(error).__name__])[0][:120]
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in text:
            raise InputError(f"{path} can't be read ({reason}); see to its permissions") from error
        raise InputError(
            f"{path} is damaged ({reason}); delete that folder to go on from the checkpoint before "
            "it"
        ) from error


def _unless_loop_closed(found: Any) -> None:
    """What Python does with errors that nobody can catch, but for those of a loop that is over."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def differing(saved: Any, params: Any) -> str | None:
    """The first parameter whose shape a checkpoint has otherwise, or doesn't have."""

    def shapes(tree):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {jax.tree_util.keystr(k, simple=True, separator="/"): v.shape for k, v in leaves}

    theirs, ours = shapes(saved), shapes(params)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
    return None


def load(run: Path, mesh: Mesh | None = None) -> Saved:
    """A run's last checkpoint, with the weights of its best epoch if that is what counts.

    Args:
      run: Its folder.
      mesh: The devices that are to have it; None is the first one.

    Raises:
      InputError: There is none, it is damaged, or it was not saved by `save`.
    """
    found = steps(run)
    if not found:
        raise InputError(f"{run} has no checkpoint; name the folder of a run")
    step = found[-1]
    with open_checkpoints(run, keep=1) as checkpoints:
        tree, about = _metadata(checkpoints, step)
        _check_format(about, run)
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        here = sharding.replicated(mesh) if mesh else first
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
        )
        restored = _restore(checkpoints, step, target, about)
    if steps(run / BEST):
        best = load(run / BEST, mesh)
        return Saved(step, {**about, "checksum": best.about.get("checksum")}, best.variables)
    # Orbax leaves out what is empty.
    return Saved(step, about, {part: restored.get(part, {}) for part in ("params", "batch_stats")})


def about(run: Path) -> tuple[int, dict[str, Any]]:
    """The step of a run's last checkpoint, and what `describe` said of it; its arrays stay unread.

    Raises:
      InputError: As in `load`.
    """
    found = steps(run)
    if not found:
        raise InputError(f"{run} has no checkpoint; name the folder of a run")
    with open_checkpoints(run, keep=1) as checkpoints:
        _, said = _metadata(checkpoints, found[-1])
    _check_format(said, run)
    return found[-1], said


def fingerprint(run: Path) -> str:
    """What tells a run's last checkpoint from others.

    Raises:
      InputError: As in `load`.
    """
    saved = load(run)
    return f"step {saved.step}, checksum {saved.about.get('checksum', 'unknown')}"


def shapes_of(about: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes that `describe` was told."""
    if "shapes" in about:
        return {name: tuple(shape) for name, shape in about["shapes"].items()}
    # Before there were several sensors.
    names = {"image": "image_shape", "elevation": "elevation_shape"}
    return {name: tuple(about[key]) for name, key in names.items() if key in about}
