"""A function of many tasks by Apache Beam, on one machine or on many.

Tasks and results are files that all workers see, so that no runner has to hold or move data.
"""

import logging
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from elev_ssl_jax.errors import InputError


def run(
    function: Callable[[Any], Any], tasks: Iterable[Any], folder: Path, options: Sequence[str]
) -> int:
    """Calls a function of a module with each task; how many there were.

    Args:
      function: What it returns is dropped.
      tasks: Written one at a time.
      folder: Where tasks are written; all workers see it under this name.
      options: Of Beam, as on the command line.

    Raises:
      InputError: Beam is missing, knows no such option, or a task had one.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError("--beam needs Apache Beam; pip install apache-beam") from error
    parsed = _parsed(PipelineOptions, options)
    folder.mkdir(parents=True)
    count = 0
    for count, task in enumerate(tasks, 1):
        (folder / f"{count:06d}").write_bytes(pickle.dumps((function, task)))
    try:
        with apache_beam.Pipeline(options=parsed) as pipeline:
            numbers = pipeline | apache_beam.Create(range(1, count + 1))
            numbers | apache_beam.Reshuffle() | apache_beam.Map(_call, str(folder))
    except Exception as error:  # each runner has its own
        first = next(iter(str(error).splitlines()), "")
        raise InputError(f"Apache Beam: {type(error).__name__}: {first}") from error
    for path in sorted(folder.glob("*.error")):
        raise InputError(path.read_text())
    return count


def _parsed(kind, options):
    """Beam would pass over what it doesn't know."""
    logging.getLogger("apache_beam.options").setLevel(logging.ERROR)  # it would say so, too
    refusal = f"neither this command nor Beam takes all of {' '.join(options)}"
    try:
        parsed = kind(list(options))
        known = parsed.get_all_options()
        unknown = parsed.get_all_options(retain_unknown_options=True).keys() - known.keys()
    except SystemExit as error:  # its argument parser's way
        raise InputError(refusal) from error
    if unknown:
        raise InputError(f"{refusal}: not {', '.join(sorted(unknown))}")
    return parsed


def _call(number: int, folder: str) -> None:
    path = Path(folder, f"{number:06d}")
    function, task = pickle.loads(path.read_bytes())
    try:
        function(task)
    except InputError as error:  # another try would be no better
        path.with_suffix(".error").write_text(str(error))
