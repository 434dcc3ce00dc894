"""A run's folder: which run and which data it is of."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elev_ssl_jax import files
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import checkpoint


def fingerprint(arrays: Mapping[str, np.ndarray], count: int | None = None) -> str:
    """What tells chips from others: how many they are, and a hash of all that is in them.

    Args:
      arrays: By name, [N, ...] each; texts are left out.
      count: How many chips there are, if the arrays are a sample of them.
    """
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype.kind in "biuf":
            sha.update(f"{name} {array.dtype} {array.shape}".encode())
            sha.update(array.data)
            length = len(array)
    of_some = f" of {length}" if count not in (None, length) else ""
    return f"{count or length} chips, SHA-256{of_some} {sha.hexdigest()[:16]}"


def count_of(fingerprint: str) -> int:
    """How many chips a fingerprint is of."""
    return int(fingerprint.split()[0])


def check_same_run(workdir: Path, config: Any, data: dict[str, str] | None = None) -> None:
    """Refuses a folder that holds results of another run.

    Args:
      workdir: The folder, which may not exist.
      config: The run's configuration.
      data: Fingerprints of what it learns from and is judged by; None while they aren't known.

    Raises:
      InputError: Says what differs.
    """
    path = workdir / "config.json"
    if not _has_results(workdir):
        return
    if not path.exists():
        raise InputError(
            f"{workdir} holds results, but no config.json that says of what; use another --workdir"
        )
    # It brings in ml_collections, which the loops can do without.
    from elev_ssl_jax.fields import differences

    again = "use another --workdir"
    saved = files.read_json(path, again)
    with files.told(path, again):
        fields = {k: v for k, v in saved.items() if k != "fingerprint"}
        changes = differences(config, fields, data_known=data is not None)
    if changes:
        raise InputError(
            f"{workdir} holds another run ({'; '.join(changes)}); use another --workdir"
        )
    then = saved.get("fingerprint", {})
    changes = [
        f"{role}: {then[role]} then, {now} now"
        for role, now in (data or {}).items()
        if role in then and then[role] != now
    ]
    if changes:
        raise InputError(
            f"{workdir} holds a run on other data ({'; '.join(changes)}); use another --workdir"
        )


def read_config(run: Path) -> dict[str, Any]:
    """The configuration that a run says it has; what its version didn't know is at its default.

    Raises:
      InputError: There is none, or it is damaged.
    """
    from elev_ssl_jax.config import default

    path, again = run / "config.json", "name the folder of a run, or run it again"
    saved = files.read_json(path, again)
    with files.told(path, again):
        return _filled(saved, default().to_dict(), "config")


def _filled(saved, known, name):
    """`known` with the values of `saved`, which are of the same kinds."""
    if not isinstance(saved, dict):
        raise ValueError(f"{name} is no group of fields")
    for key, value in saved.items():
        default = known.get(key, value)
        if isinstance(default, dict) and key in known:
            value = _filled(value, default, f"{name}.{key}")
        elif _kind(value) != _kind(default):
            raise ValueError(f"{name}.{key} is {value!r}")
        known[key] = value
    return known


def _kind(value):
    return next((k for k in ((int, float), (list, tuple)) if isinstance(value, k)), type(value))


def claim(workdir: Path, config: Any, data: dict[str, str]) -> None:
    """Makes the folder this run's: `check_same_run`, then `config.json`.

    Raises:
      InputError: It is another's, or can't be written.
    """
    check_same_run(workdir, config, data)
    fields = json.loads(config.to_json_best_effort())
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if _has_results(workdir):  # what they are of is not forgotten if it isn't used now
            saved = files.read_json(workdir / "config.json", "use another --workdir")
            data = {**saved.get("fingerprint", {}), **data}
        text = json.dumps({**fields, "fingerprint": data}, indent=2)
        files.write_text(workdir / "config.json", text + "\n")
    except OSError as error:
        raise InputError(f"--workdir={workdir} can't be written: {error.strerror}") from error


def _has_results(workdir):
    """Checkpoints, finished fine-tunings of an experiment, or checkpoints of its pre-trainings."""
    folders = [workdir, *(workdir / "pretrain").glob("*")]
    return any(checkpoint.steps(folder) for folder in folders) or any(
        (workdir / "cells").glob("*.json")
    )
