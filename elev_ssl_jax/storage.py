"""Runs in a bucket: paths that are used as those of files are, and what works on which.

Orbax keeps checkpoints in buckets of Google Cloud Storage itself; whatever else a run writes goes
there through fsspec. TensorFlow's own client of such buckets is left out: it knows one endpoint.
"""

import functools
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from elev_ssl_jax.errors import InputError

_BUCKET = "gs://"
_BY_GDAL = ("/vsigs/", "/vsis3/")  # prefixes of the buckets' rasters


def run_path(name: str | Path) -> Path:
    """A run's folder: one of this machine, or `gs://BUCKET/FOLDER`, used in the same way.

    Raises:
      InputError: It is another address, or what reaches buckets is not installed.
    """
    name = str(name)
    if not name.startswith(_BUCKET):
        return local_path(name)
    if not names_run(name):
        raise InputError(f"{name}: name a folder, without *, ?, [ and ], as gs://BUCKET/FOLDER")
    _prepare()
    from etils import epath

    return cast(Path, epath.Path(name))  # has what is asked of it here


def names_run(name: str) -> bool:
    """Whether a run's folder could be called so."""
    if not name.startswith(_BUCKET):
        return not is_address(name)
    # Names with the characters of patterns would be taken for those when a folder is listed.
    return re.fullmatch(r"gs://[^/*?\[\]]+/[^*?\[\]]*[^/*?\[\]]/*", name) is not None


def local_path(name: str | Path) -> Path:
    """A file or a folder of this machine.

    Raises:
      InputError: It is an address.
    """
    name = str(name)
    if not name or "\0" in name:
        raise InputError(f"{name!r} is no name of a file or folder")
    if is_address(name):
        raise InputError(
            f"{name} is an address; only runs may lie at one, in buckets of Google Cloud Storage "
            "(gs://). Name a folder where it is mounted, or a raster as GDAL does (/vsis3/...)"
        )
    with suppress(RuntimeError):  # there is no such user
        return Path(name).expanduser()  # which shells leave to us in --flag=~/path
    return Path(name)


def is_address(name: str) -> bool:
    """Whether it names something in the network rather than a path."""
    return re.match(r"\w+:/", name) is not None  # pathlib makes one slash of two


def in_bucket(path: Path) -> bool:
    """Whether a run lies in a bucket; of a path by `run_path`."""
    return str(path).startswith(_BUCKET)


def is_remote_raster(path: Path) -> bool:
    """Whether GDAL is to read it from a bucket."""
    return str(path).startswith(_BY_GDAL)


def check_writable(folder: Path) -> None:
    """Writes, reads and deletes a file in a run's folder, if that is in a bucket.

    Raises:
      InputError: That can't be done.
    """
    if not in_bucket(folder):  # whose making says as much
        return
    path = folder / f".access-{os.urandom(8).hex()}"
    with told(folder):
        path.write_text("may be deleted")
        path.read_text()
        path.unlink()


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of a bucket's client, which has many kinds of them, as `InputError`.

    What is done in a folder of this machine has its errors as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not in_bucket(path):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise InputError(
            f"{path} can't be used ({reason}); see that the bucket exists and that this machine's "
            "credentials may read and write there"
        ) from error


@functools.cache
def _prepare() -> None:
    """Has etils, and Orbax with it, use fsspec, which looks anew every time."""
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError("gs:// needs gcsfs; pip install gcsfs")
    os.environ.setdefault("EPATH_USE_TF", "false")
    from etils.epath import gpath

    gpath._is_tf_installed.cache_clear()  # TFDS may have had it look before
    # Else it asks what kind of bucket each is, which takes a permission more.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what fails is told by `told`
    import fsspec.config

    # Other processes write there, too, and so does TensorStore.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
