"""Processes and devices: batches are split over all devices, everything else is on each."""

import hashlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elev_ssl_jax import storage
from elev_ssl_jax.errors import InputError

# Seconds. A process that says nothing for so long is dead, and the others end. One that ends by an
# error waits so long for the others to come to their end as well.
_HEARTBEAT = 20
_LONGEST = 2048  # bytes of a refusal that others hear of


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the other processes of a run, if there are any. Comes before anything else of JAX.

    What is not said is found by JAX, on a TPU pod, under Slurm, Open MPI and Kubernetes (with the
    `kubernetes` package). Where nothing is said and nothing is found, the process is alone.

    Args:
      coordinator: Address of process 0, as HOST:PORT with a port that is free there.
      num_processes: How many there are; 1 stays alone whatever the environment says.
      process_id: Which one this is, from 0.
      timeout: Seconds to wait for the others. Then a line says so, and the program ends with
        exit code 2: JAX itself would end it with a stack trace.

    Raises:
      InputError: The three don't go together, or the environment is not what it seems.
    """
    # Slurm gives each process one GPU, as JAX has it; a single one should have them all.
    if num_processes == 1 or (num_processes is None and os.environ.get("SLURM_NTASKS") == "1"):
        return
    where = f"the coordinator {coordinator}" if coordinator else "the coordinator"

    def give_up():
        print(
            f"error: {where} and all processes did not meet within {timeout} s; check that process "
            "0 runs there, that its port can be reached, and that all of them were started",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    # It would swallow SIGTERM, so that a machine that is taken away ended in the middle of a save.
    jax.config.update("jax_enable_preemption_service", False)
    watch = threading.Timer(timeout, give_up)
    watch.daemon = True
    watch.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pod without the kubernetes package is alone
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=_HEARTBEAT,
                shutdown_timeout_seconds=_HEARTBEAT,
            )
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        nothing_said = {coordinator, num_processes, process_id} == {None}
        if not (nothing_said and "coordinator_address" in str(error)):  # nor anything found
            raise InputError(
                f"can't join the other processes: {str(error).splitlines()[0]}; give --coordinator "
                "HOST:PORT, --num_processes and --process_id, or --num_processes=1 to run alone"
            ) from error
    finally:
        watch.cancel()
    # JAX ends a process by it when another is gone: the stacks of all threads would say nothing.
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


@contextmanager
def leaving() -> Iterator[None]:
    """A process of several that ends within, while the others go on, keeps its exit code.

    At the exit JAX waits for them, and after a while aborts.
    """
    try:
        yield
    except SystemExit as stop:
        if jax.distributed.is_initialized():
            code = stop.code if isinstance(stop.code, int) else 1
            watch = threading.Timer(_HEARTBEAT / 2, os._exit, [code])
            watch.daemon = True
            watch.start()
        raise


def alone() -> bool:
    """Whether this process is the only one."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when all processes have come here."""
    if not alone():
        multihost_utils.sync_global_devices(what)


@contextmanager
def together() -> Iterator[None]:
    """What one process refuses within, all refuse: none is left waiting for it.

    Raises:
      InputError: On each process, that of the first that has one.
    """
    refusal = ""
    try:
        yield
    except InputError as error:
        if alone():
            raise
        refusal = str(error)
    if alone():
        return
    text = refusal.encode()[:_LONGEST].ljust(_LONGEST)
    texts = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
    for process, row in enumerate(np.asarray(texts)):
        said = row.tobytes().decode(errors="ignore").rstrip()
        if said:
            raise InputError(refusal or f"process {process}: {said}")


def check_same(what: str, values: Any) -> None:
    """Refuses to go on if arrays or texts differ between processes.

    Raises:
      InputError: On each of them; says which ones differ from the first.
    """
    if alone():
        return
    sha = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(values)):
        sha.update(f"{leaf.shape} {leaf.dtype}".encode() + leaf.tobytes())
    digest = np.frombuffer(sha.digest(), np.uint32)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    differing = np.flatnonzero((digests != digests[0]).any(axis=1))
    if differing.size:
        processes = ", ".join(map(str, differing))
        raise InputError(
            f"{what} of process(es) {processes} is not that of process 0; start all of them with "
            "the same command, code and data"
        )


def check_shared(folder: Path, patience: float = 20.0) -> None:
    """Refuses a folder that the first process has made and others don't see.

    Args:
      folder: It exists where the first process runs.
      patience: Seconds that a network's file system has to show what is new.

    Raises:
      InputError: In all processes.
    """
    if alone():
        return
    drawn = np.frombuffer(os.urandom(4), np.uint32)
    token = multihost_utils.broadcast_one_to_all(drawn)
    path = folder / f".shared-{token[0]}"
    if is_first():
        path.touch()
    wait_for_all("a file to look for")
    until = time.monotonic() + patience
    while not (seen := _sees(path)) and time.monotonic() < until:
        time.sleep(0.5)
    seen_by = multihost_utils.process_allgather(np.array([seen]))
    if is_first():
        path.unlink()
    if not seen_by.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen_by.ravel())))
        raise InputError(
            f"--workdir={folder} of process(es) {blind} is not that of process 0; name a folder on "
            "a file system that all of them share, or a bucket that all of them have access to"
        )


def _sees(path):
    """Whether there is a file; without access there is none, and others wait for the answer."""
    with suppress(InputError), storage.told(path):
        return path.exists()
    return False


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, `batch`, over the devices; None is all, of all processes.

    The axis is `Auto`: the compiler derives the shardings inside a step from those of its
    arguments, which is what lets the loss be written on global arrays. Within a slice of a TPU pod
    neighbours on the axis are neighbours in their network; slices follow one another.
    """
    devices = jax.devices() if devices is None else devices
    axes: dict[str, Any] = {"axis_names": ("batch",), "axis_types": (AxisType.Auto,)}
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    meshes = [jax.make_mesh((len(some),), devices=some, **axes) for some in slices.values()]
    return Mesh(np.concatenate([mesh.devices for mesh in meshes]), **axes)


def platform(mesh: Mesh) -> str:
    """Of the devices: "cpu", "gpu" or "tpu"."""
    return str(mesh.devices.flat[0].platform)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The array's `axis` split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "batch"))


def place(arrays: Any, where: NamedSharding) -> Any:
    """NumPy arrays that are the same in every process, on the devices.

    Each process sends its own devices what they should hold, and nothing is compared.
    """

    def place_one(array):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(place_one, arrays)


def local_rows(where: NamedSharding, count: int) -> np.ndarray:
    """Which of `count` rows the devices of this process hold, in order."""
    slices = where.addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in slices]))
