"""One command with one bad input, in a process of its own, and what is wrong with its answer.

Processes are forked from one that has imported everything, so that a trial takes a tenth of a
second and not six.
"""

import ctypes
import fcntl
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests import commands

REFUSED, FINE, DEFECT = 2, 0, 1
MEBIBYTES = 3000  # more than this and the seconds of a case is an answer that nobody waits for
_TO_REFUSE = 60
_CAP_SET = 0x20080522, (1 << 1) | (1 << 2)  # version 3; what lets root pass by permissions


class Case(NamedTuple):
    """A command and what it is given."""

    kind: str
    name: str
    words: tuple[str, ...]  # the module, and its arguments; its folder is the current one
    needs: tuple[str, ...] = ()  # what of the world lies in that folder
    spoil: Callable[[Path], object] | None = None  # called with the folder first
    codes: tuple[int, ...] = (REFUSED,)
    says: str = ""  # a pattern in what it says last
    may: tuple[str, ...] = ()  # patterns of what may appear or change if it isn't refused
    always: tuple[str, ...] = ()  # and of what may in any case, since it can be made again
    humble: bool = False  # run without root's right to write everywhere
    largest: int = 0  # bytes that a file may have, as where the disk is full
    during: Callable[[], object] | None = None  # called in its process first

    @property
    def seconds(self) -> int:
        """How long it may take: only what isn't refused has work to do, and maybe to compile."""
        return 300 if FINE in self.codes else _TO_REFUSE


class Answer(NamedTuple):
    """What came of a case."""

    case: Case
    code: int
    seconds: float
    mebibytes: float
    said: str
    wrong: list[str]


def run_all(cases: Iterable[Case], world: Path, scratch: Path, side_by_side=2) -> Iterator[Answer]:
    """Every case's answer, as they come."""
    waiting, running = iter(cases), {}
    while True:
        while len(running) < side_by_side and (case := next(waiting, None)) is not None:
            folder = scratch / str(abs(hash((case.kind, case.name))))
            try:
                begun = _start(case, world, folder)
            except Exception as error:
                raise RuntimeError(f"{case.kind}: {case.name} could not be set up") from error
            running[begun[0]] = case, folder, *begun[1:]
        if not running:
            return
        for pid, (case, folder, before, start, pipe) in [*running.items()]:
            done, status, used = os.wait4(pid, os.WNOHANG)
            late = time.monotonic() - start > case.seconds
            if late and not done:
                os.killpg(pid, signal.SIGKILL)
                done, status, used = os.wait4(pid, 0)
            if done:
                del running[pid]
                seconds = time.monotonic() - start
                said = said_so_far(pipe)
                os.close(pipe)
                mebibytes = used.ru_maxrss / 1024
                yield _judged(case, folder, before, status, seconds, mebibytes, late, said)
                make_writable(folder)
                shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.01)


def laid_out(needs: Iterable[str], world: Path, folder: Path) -> Path:
    """A folder within another that has what is needed of the world."""
    place = folder / "place"
    place.mkdir(parents=True)
    for name in needs:
        source = world / name
        if source.is_dir():
            shutil.copytree(source, place / name, symlinks=True)
        else:
            shutil.copy2(source, place / name)
    return place


def _start(case, world, folder):
    place = laid_out(case.needs, world, folder)
    if case.spoil is not None:
        _apart(case.spoil, place)
    before = _contents(place)
    start = time.monotonic()
    pid, pipe = begun(case, place)
    return pid, before, start, pipe


def begun(case: Case, place: Path) -> tuple[int, int]:
    """The process of a case that runs there, and a pipe with what it says."""
    # Not a file, which might be too large for a disk that is full.
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    pid = os.fork()
    if pid:
        os.close(writer)
        os.set_blocking(reader, False)
        return pid, reader
    try:
        os.setsid()
        os.chdir(place)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(writer, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        if case.humble:
            _give_up_rights()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if case.largest:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.largest, case.largest))
        tempfile.tempdir = str(place.parent)
        if case.during is not None:
            case.during()
        code = _code(case.words)
    except BaseException:
        code = 70
        with suppress(OSError):
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _apart(function, *arguments):
    """In a process of its own: libraries that write odd files may not survive it."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(function)


def _code(words):
    try:
        commands.run_module(words)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    return 0


def said_so_far(pipe: int) -> str:
    """What a process said since; one that was left behind may hold the other end."""
    said = b""
    with suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 20):
            said += part
    return said.decode(errors="replace")


def _give_up_rights():
    if os.getuid():
        return
    version, gone = _CAP_SET
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(version, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.syscall(125 if os.uname().machine == "x86_64" else 90, header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for i in (0, 1):  # effective, permitted
        data[i] &= ~gone
    if libc.syscall(126 if os.uname().machine == "x86_64" else 91, header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _contents(place):
    """Every file under a folder: what tells whether it has been touched."""
    found = {}
    for folder, folders, names in os.walk(place):
        for name in [*folders, *names]:
            path = Path(folder, name)
            status = path.lstat()
            told = None if name in folders else (status.st_size, status.st_mtime_ns)
            found[str(path.relative_to(place))] = told
    return found


def make_writable(folder: Path) -> None:
    """So that it can be removed."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            Path(path, name).chmod(0o755)


def _judged(case, folder, before, status, seconds, mebibytes, late, said):
    code = os.waitstatus_to_exitcode(status)
    # A bar is drawn over itself.
    lines = [line.rpartition("\r")[2] for line in said.split("\n")]
    lines = [line for line in lines if line.strip() and not re.search(r"\d+%\|", line)]
    last = lines[-1] if lines else ""
    wrong = []
    if late:
        wrong.append(f"no answer in {case.seconds} s")
    elif code not in case.codes:
        wrong.append(f"exit code {code}, not {' or '.join(map(str, case.codes))}")
    elif code == REFUSED and seconds > _TO_REFUSE:
        wrong.append(f"refused only after {seconds:.0f} s")
    if mebibytes > MEBIBYTES:
        wrong.append(f"took {mebibytes:.0f} MiB")
    if "Traceback" in said:
        wrong.append("a traceback")
    if code == REFUSED:
        wrong += _of_line(lines, last, case.says)
    after = _contents(folder / "place")
    for name in sorted(before.keys() | after.keys()):
        if before.get(name, ()) == after.get(name, ()):
            continue
        patterns = case.may if code != REFUSED else case.always
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            continue
        what = "appeared" if name not in before else "is gone" if name not in after else "changed"
        wrong.append(f"{name} {what}")
    left = [path.name for path in folder.iterdir() if path.name != "place"]
    left = [name for name in left if not name.endswith("tfds")]  # empty: TFDS' own
    if code == REFUSED and left:
        wrong.append(f"left in the temporary folder: {', '.join(left)}")
    return Answer(case, code, seconds, mebibytes, said, wrong)


def _of_line(lines, last, says):
    wrong = []
    if not re.match(r"((python -m )?\S+: )?error: ", last):
        wrong.append(f"the last line is no error: {last[:200]!r}")
    if len(last) > 800:
        wrong.append(f"a line of {len(last)} characters")
    if not last.isprintable():
        wrong.append("a line with control characters")
    # GDAL's library of TIFFs speaks for itself.
    spoken = [line for line in lines if not line.startswith(("usage:", " ", "note: ", "_tiff"))]
    if len(spoken) > 3:
        wrong.append(f"{len(spoken)} lines: {spoken[0][:120]!r} ...")
    if says and not re.search(says, last):
        wrong.append(f"{says!r} is not in {last[:200]!r}")
    return wrong
