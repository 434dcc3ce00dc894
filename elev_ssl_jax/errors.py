"""How a command ends that can't do what it was asked to: one line, and an exit code."""

import errno
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from elev_ssl_jax import __version__

# Of the system, with the remedy; other errors of the system say what is wrong by themselves.
_REMEDIES = {
    errno.ENOSPC: "; free some space, and give the same command again",
    errno.EDQUOT: "; free some space, and give the same command again",
    errno.EFBIG: "; name a disk that takes larger files, or raise the limit (ulimit -f)",
    errno.EROFS: "; name a folder that can be written",
    errno.EACCES: "; see to its permissions",
    errno.EPERM: "; see to its permissions",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}
_AGAIN = "nothing is left half written; the same command goes on, or begins again"


class InputError(ValueError):
    """Bad input: the message is one line that names the file or field and the remedy."""


class _Terminated(BaseException):
    """The system, or a scheduler, asks for the end."""


@contextmanager
def reported() -> Iterator[None]:
    """Ends the program with one line instead of a traceback.

    The exit code is 2 for what the user can mend, 1 for a defect of this program, whose traceback
    goes into a file that the line names, and 128 and the signal's number after Ctrl-C and SIGTERM.
    """
    before = {
        number: signal.getsignal(number)
        for number, usual in (
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGINT, signal.default_int_handler),
        )
        if signal.getsignal(number) is usual
        and threading.current_thread() is threading.main_thread()
    }
    for sent in before:
        signal.signal(sent, _stop)
    try:
        yield
    except InputError as error:
        _end(2, f"error: {one_line(error)}")
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT, f"\ninterrupted; {_AGAIN}")
    except _Terminated:
        _end(128 + signal.SIGTERM, f"terminated; {_AGAIN}")
    except BrokenPipeError:  # who reads what is printed has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, nor may its flush at the end fail
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno is None:
            _end_of_defect(error)
        where = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "")
        _end(2, f"error: {one_line(f'{where}{error.strerror}')}{remedy}")
    except MemoryError as error:
        _end(2, f"error: not enough memory ({one_line(error) or 'none is left'}); use less at once")
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # as XLA says it
            _end(
                2,
                f"error: not enough memory of the device ({one_line(error, 150)}); make the batch "
                "or the network smaller (elev_ssl_jax.plan says what a run takes)",
            )
        if "Barrier timed out" in str(error):
            _end(
                2,
                "error: other processes of this run have ended, or don't go on; see what they say, "
                "and start all of them again",
            )
        for number in _REMEDIES:
            if os.strerror(number) in str(error):  # of libraries with errors of their own
                _end(2, f"error: {one_line(error, 300)}{_REMEDIES[number]}")
        if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # as pathlib says it
            _end(2, f"error: {one_line(error)}; name another path")
        _end_of_defect(error)
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)


def one_line(what: object, most: int = 600) -> str:
    """A message as one line that a terminal can show: no control characters, not endless."""
    text = re.sub(r"\s*\n\s*", " ", str(what).strip())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of what is done within; a second Ctrl-C doesn't."""
    _held.append(None)
    try:
        yield
    finally:
        number = _held.pop()
    if number is not None:
        _stop(number)


_held: list[int | None] = []  # of each `undisturbed` that is under way, the signal that waits


def _stop(number, *_):
    if _held and _held[-1] is None:
        _held[-1] = number
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    # Once: what is tidied up on the way out is not interrupted again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


def _end(code, line):
    print(line, file=sys.stderr)
    sys.exit(code)


def _end_of_defect(error):
    """With the whole story in a file, for whoever mends it."""
    said = one_line(f"{type(error).__name__}: {error}", 300)
    story = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="elev_ssl_jax-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.write(f"{shlex.join(sys.argv)}\nelev_ssl_jax {__version__}, ")
            file.write(f"{platform.platform()}, Python {sys.version}\n")
            file.write(story)
        where = f"the traceback is in {file.name}"
    except OSError:  # no space left, say
        where = f"here is the traceback:\n{story}"
    _end(1, f"error: a defect of elev_ssl_jax, please report it: {said}; {where}")
