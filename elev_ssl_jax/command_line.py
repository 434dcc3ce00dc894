"""What command lines have in common."""

import argparse
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from absl import flags

from elev_ssl_jax import storage
from elev_ssl_jax.errors import InputError, one_line, reported

# Fields of several names, none of which has a comma.
_NAMES = (
    *("data.inputs", "data.transfer.inputs", "experiment.methods", "experiment.tasks"),
    *("experiment.metrics", "experiment.encoders"),
)


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Of `python -m elev_ssl_jax.NAME`, which the first line of `doc` describes."""
    program = f"python -m elev_ssl_jax.{name}"
    return argparse.ArgumentParser(prog=program, description=doc.splitlines()[0])


def path(text: str) -> Path:
    """The `type` of an argument that names a file or a folder of this machine."""
    return _argument(storage.local_path, text)


def run(text: str) -> Path:
    """The `type` of an argument that names a run."""
    return _argument(storage.run_path, text)


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """The `type` of an argument that is a whole number from `low` to `high`."""

    def parsed(text):
        with suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        raise argparse.ArgumentTypeError(
            f"{one_line(text, 40)!r} is not a whole number from {low} to {high:,}"
        )

    return parsed


def add_workers(parser: argparse.ArgumentParser, default: int | None, words: str) -> None:
    """`--workers`, processes of this machine."""
    parser.add_argument("--workers", type=whole(1, 1024), default=default, help=words)


def add_min_area(parser: argparse.ArgumentParser) -> None:
    """`--min-area`, of polygons."""
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="M2",
        help="square metres; smaller polygons become part of their largest neighbour",
    )


def _argument(made, text):
    try:
        return made(text)
    except InputError as error:  # of which argparse would tell no more than that there was one
        raise argparse.ArgumentTypeError(str(error)) from error


def parse(argv: list[str], config: Any) -> list[str]:
    """As absl does, but an error is one line and exit code 2.

    Args:
      argv: The program and its arguments.
      config: The flag of the configuration file.

    Returns:
      The program, and what is no flag.
    """
    with reported():
        argv = [_found(word, name=before) for before, word in zip(["", *argv], argv, strict=False)]
        try:
            rest = flags.FLAGS(argv)
            _split_names(config.value)  # a file that can't be loaded says so only when it is used
            return rest
        except (
            flags.Error,
            LookupError,
            AttributeError,
            ValueError,
            TypeError,
            OSError,
        ) as error:
            # These messages hold tracebacks and lists of fields; the reason comes last.
            text = str(error.args[0]) if error.args else repr(error)
            reason = text.replace("\\n", "\n").strip().splitlines()[-1].strip(" '\"")
            if isinstance(error, LookupError | AttributeError) or "Did you mean" in reason:
                reason = (
                    f"unknown configuration field; the fields are in config/defaults.py: {reason}"
                )
            raise InputError(reason) from error
        except (Exception, SystemExit) as error:  # of the file, which is the user's own code
            place = _place_in_file(error)
            if isinstance(error, SystemExit) and not place:  # of --help, where absl gives a 1
                raise SystemExit(0) from error
            said = f"{type(error).__name__}: {one_line(error, 300)}"
            raise InputError(f"--config: {place}{said}") from error


def shipped() -> dict[str, Path]:
    """The configurations that come with the program, by name."""
    # In a checkout they lie beside the package, in an installation within it.
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    files = next(folder for folder in folders if folder.is_dir()).glob("*.py")
    return {path.stem: path for path in sorted(files)}


def _found(word, *, name):
    """Of `--config=simclr_elev:demo`, if `word` is that, with the file of that name."""
    flag, is_one_word, value = word.partition("=")
    if is_one_word and flag in ("-config", "--config"):
        return f"{flag}={_path_of(value)}"
    return _path_of(word) if name in ("-config", "--config") else word


def _path_of(value):
    name, colon, variant = value.partition(":")
    if not name or (Path(name).exists() and not Path(name).is_dir()):
        return value
    if name not in shipped():
        raise InputError(
            f"--config={one_line(name, 80)}: there is no such file, nor a configuration of that "
            f"name; those that come with the program are {', '.join(shipped())}"
        )
    return f"{shipped()[name]}{colon}{variant}"


def _place_in_file(error):
    """The last of an error's places in the configuration's file, or nothing where it has none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.endswith(".py") and f.name in ("get_config", "<module>")]
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""


def _split_names(config):
    """Takes `--config.FIELD=a,b` for ('a', 'b'); numbers are read so anyway."""
    for field in _NAMES:
        *groups, name = field.split(".")
        part = config
        for group in groups:
            part = part[group]
        if len(part[name]) == 1 and "," in part[name][0]:
            part[name] = tuple(part[name][0].split(","))
