"""Files and folders that appear whole or not at all, and folders that have one writer."""

import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from elev_ssl_jax import storage
from elev_ssl_jax.errors import InputError, one_line

UNLABELLED = 255  # what files of classes, eight bits each, hold where there is none

_CONTENT = ".content"  # in a folder that can be gone on with: what it is of
_LOCK = ".lock"  # in a folder that is being written; held by its writer, as long as that lives


@contextmanager
def new_file(path: Path, *, crowded: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the name `path` only when it is whole.

    What was there before stays until then, and if an error comes. In a bucket, where a file is
    there once it is whole, it is written on this machine first.

    Args:
      path: Its name.
      crowded: As of `scratch_folder`.
    """
    if storage.in_bucket(path):
        with tempfile.TemporaryDirectory() as scratch:
            partial = Path(scratch, path.name)
            yield partial
            with storage.told(path):
                path.write_bytes(partial.read_bytes())
        return
    with scratch_folder(path, crowded=crowded) as folder:
        partial = folder / path.name
        yield partial
        partial.replace(path)


@contextmanager
def scratch_folder(path: Path, *, crowded: bool = False) -> Iterator[Path]:
    """A hidden folder beside `path`, on the same disk, in which it is made; gone in the end.

    What killed makers of `path` have left there goes, too.

    Args:
      path: What is made.
      crowded: The folder around it has too many files to look for what was left, and somebody else
        sees to that.
    """
    prefix = f".{path.name}.unfinished-"
    if not crowded:
        for left in path.parent.glob(f"{glob.escape(prefix)}*"):
            _remove_ownerless(left)
    folder, lock = _owned_folder(prefix, path.absolute().parent)
    with lock:
        try:
            yield folder
        finally:
            remove_owned(folder)


def _owned_folder(prefix, where):
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        # It was empty for a moment, and another maker of the same has taken it for left.
        with suppress(FileNotFoundError):
            lock = (folder / _LOCK).open("w")
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder, lock


def _remove_ownerless(folder):
    with suppress(OSError):
        if not any(folder.iterdir()):  # killed before it had a lock
            folder.rmdir()
            return
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_owned(folder)


def remove_owned(folder: Path) -> None:
    """Removes a folder with its lock, as far as that is possible.

    The lock goes last: without one nobody would know whose the rest is, if this is killed.
    """
    with suppress(OSError):
        for child in folder.iterdir():
            if child.name != _LOCK:
                shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink()
        shutil.rmtree(folder)


def check_regular(path: Path, why: str = "") -> None:
    """Raises `InputError` if there is no such file, or it is a folder, a pipe or a device.

    Of what lies in a bucket only opening it tells.
    """
    if storage.is_remote_raster(path):
        return
    if not path.exists():
        raise InputError(f"{path} not found{why}")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file{why}")


@contextmanager
def told(path: Path, remedy: str) -> Iterator[None]:
    """Names the file in which what is read within is damaged, or can't be read.

    Raises:
      InputError: With the remedy, for whatever libraries make of damaged files.
    """
    try:
        yield
    except InputError:
        raise
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError, RecursionError),
        *(AttributeError, IndexError, OverflowError, zipfile.BadZipFile, zlib.error),
    ) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = one_line(reason or error or type(error).__name__, 150)
        raise InputError(f"{path} can't be read ({reason}); {remedy}") from error


def read_json(path: Path, remedy: str, *, or_null: bool = False) -> dict[str, Any]:
    """What a JSON file of this program says; what is null, if it may be, says nothing.

    Raises:
      InputError: It isn't there, is no JSON object, or can't be read; with the remedy.
    """
    check_regular(path, f"; {remedy}")
    with told(path, remedy):
        found = json.loads(path.read_text())
        if or_null and found is None:
            return {}
        if not isinstance(found, dict):
            raise ValueError("it is no object")
        return found


def read_arrays(path: Path, remedy: str, *names: str) -> list[np.ndarray]:
    """The named arrays of a .npz file, or the one of a .npy file.

    Raises:
      InputError: It isn't there, is damaged, or has no such array; with the remedy.
    """
    check_regular(path, f"; {remedy}")
    with told(path, remedy):
        # In buckets libraries know no paths.
        found = np.load(io.BytesIO(path.read_bytes()))
        return [found[name] for name in names] if names else [found]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with new_file(path) as partial:
        partial.write_text(text)


@contextmanager
def new_folder(path: Path, *, goes_on: str | None = None) -> Iterator[Path]:
    """A folder that appears under its name only when all of it is written.

    Until then it is `.NAME.unfinished`, beside it, and has one writer. What a killed writer has
    left there is deleted by the next, or kept for it to go on with, if that is wished.

    Args:
      path: Its name.
      goes_on: A text that is the same if, and only if, what was left can be gone on with; an error
        leaves it then, too. None always begins anew.

    Raises:
      InputError: `path` exists already, can't be written, or another process is writing it.
    """
    if path.exists():
        raise InputError(f"{path} exists already; name another folder or delete this one")
    partial = path.with_name(f".{path.name}.unfinished")
    check_ours(partial)
    with sole_writer(partial, f"{path} is being written by another process; wait for it"):
        try:
            said = partial / _CONTENT
            if goes_on is None or not said.is_file() or said.read_text() != goes_on:
                for child in partial.iterdir():
                    if child.name != _LOCK:
                        shutil.rmtree(child) if child.is_dir() else child.unlink()
            if goes_on is not None:
                said.write_text(goes_on)
            yield partial
            if path.exists():
                raise InputError(f"{path} has come into being meanwhile; name another folder")
            said.unlink(missing_ok=True)
            partial.rename(path)
            (path / _LOCK).unlink()
        except OSError as error:
            raise InputError(f"{path} can't be written: {error.strerror or error}") from error
        finally:
            # Something may be there to go on with.
            kept = goes_on is not None and partial.is_dir()
            if not kept or {p.name for p in partial.iterdir()} <= {_LOCK, _CONTENT}:
                remove_owned(partial)


def check_ours(unfinished: Path) -> None:
    """Refuses a folder to write to that something else than this program has made.

    Raises:
      InputError: It has no lock, and is not empty, as that of a writer that was killed at once.
    """
    empty = not unfinished.exists() or (unfinished.is_dir() and not any(unfinished.iterdir()))
    if not empty and not (unfinished / _LOCK).is_file():
        raise InputError(f"{unfinished} is in the way, and not of this program; move it elsewhere")


@contextmanager
def sole_writer(folder: Path, refusal: str) -> Iterator[None]:
    """Makes `folder` if need be, and keeps every other process that asks out of it.

    The system takes the lock from a process that ends, however it ends. A bucket has none: other
    processes of this machine are kept out of its folder, and those of other machines are not.

    Raises:
      InputError: With the message `refusal` while another process is in; or the folder can't be
        made.
    """
    if storage.in_bucket(folder):
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        name = f"elev_ssl_jax-{os.getuid()}-{digest}"  # another user's can't be opened
        with sole_writer(Path(tempfile.gettempdir(), name), refusal):
            yield
        return
    made = not folder.exists() or _holds_lock_alone(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock: IO = (folder / _LOCK).open("w")
    except OSError as error:
        raise InputError(f"{folder} can't be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(refusal) from error
        except OSError:
            pass  # a file system without locks
        if not _is_at(lock, folder / _LOCK):  # it was its owner's, who has just left
            raise InputError(refusal)
        try:
            yield
        finally:
            if made and _holds_lock_alone(folder):
                shutil.rmtree(folder)  # nothing came of it


def state(path: Path) -> tuple[int, int]:
    """What tells a file from what it was: its size, and when it changed.

    Of rasters in buckets nothing does.
    """
    if storage.is_remote_raster(path):
        return -1, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _holds_lock_alone(folder):
    return folder.is_dir() and [path.name for path in folder.iterdir()] == [_LOCK]


def _is_at(file, path):
    """Whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def check_outputs(
    outputs: Iterable[Path], inputs: Iterable[Path] = (), *, overwrite: bool = False
) -> None:
    """Refuses outputs that would destroy an input or a file that is there already.

    Raises:
      InputError: An output is one of the inputs under any name, is named twice, lies in a folder
        that is not there, or exists and `overwrite` is False.
    """
    seen: dict[Path, Path] = {}
    inputs = list(inputs)
    for path in outputs:
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it first")
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file")
        if path.resolve() in seen:
            raise InputError(f"{path} would be written twice; each output has its own file")
        seen[path.resolve()] = path
        for source in inputs:
            with suppress(OSError):  # one of them is not there
                if path.samefile(source):
                    raise InputError(
                        f"{path} is an input, and would be overwritten; name another file"
                    )
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; name another file, or add --overwrite")
