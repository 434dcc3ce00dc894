"""Commands that are killed or disturbed in the middle, and are given again.

What they leave in the end is compared, to the bit, with what they make undisturbed.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import geopandas
import jax
import numpy as np

from elev_ssl_jax.runtime import checkpoint
from tests.campaign import asking, trial, world
from tests.campaign.trial import FINE, REFUSED, Case

_KILLED, _STOPPED, _TERMINATED = -signal.SIGKILL, 130, 143
_PATIENCE = 240  # seconds for a command that isn't disturbed
_TO_MEET = 420  # more where one of several waits for another, as it does for up to 300
_PAUSE = 5
# What changes the disk, as Python's audit hooks tell of it.
_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


class Job(NamedTuple):
    """A command that makes something."""

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    out: str
    processes: int = 1
    anew: str = ""  # makes it again where some of it has its name already


class Fault(NamedTuple):
    """What happens in the middle."""

    name: str
    happen: Callable[[Path], object]  # in the process itself, with what the job makes
    codes: tuple[int, ...]
    before: Callable[[Path], object] | None = None  # of giving the command again
    humble: bool = False


class Trial(NamedTuple):
    """A job and its fault; of two the first disturbs the command that is given again, too."""

    job: Job
    fault: Fault
    seed: int
    times: int = 1

    @property
    def name(self) -> str:
        """How a line calls it."""
        return f"{self.job.name}, {self.fault.name}, {self.seed}"


class Whole(NamedTuple):
    """What a job does undisturbed."""

    digest: dict[str, str]
    events: int


_TRAINED = ("--config.epochs=3", "--config.checkpoint.every_epochs=1")
_PREDICT = (*world.MAP[:-1], "new.tif", "--probabilities", "new.prob.tif")
_FINETUNE = (*world.FINETUNE, "--workdir=new", *_TRAINED)
_PRETRAIN = (*asking.PRETRAIN, *_TRAINED)
JOBS = (
    Job("chips", asking.CUT, asking.SCENE, "new"),
    Job("chips by two workers", (*asking.CUT[:-1], "2"), asking.SCENE, "new"),
    Job("prepare", asking.BUILD, ("chips",), "new"),
    Job("predict", _PREDICT, ("fine", "image.tif"), "new.tif", 1, "--overwrite"),
    Job("polygons", asking.POLYGONS, ("map.tif",), "new.gpkg"),
    Job("pre-training", _PRETRAIN, ("data",), "new"),
    Job("fine-tuning", _FINETUNE, ("data",), "new"),
    Job("experiment", asking.EXPERIMENT, ("data",), "new"),
    Job("pre-training, two processes", _PRETRAIN, ("data",), "new", 2),
)


def _send(number):
    return lambda _: os.kill(os.getpid(), number)


def _pause(_):
    """SIGSTOP, as of a machine that stands still."""
    me = os.getpid()
    if os.fork() == 0:
        time.sleep(_PAUSE)
        os.kill(me, signal.SIGCONT)
        os._exit(0)
    os.kill(me, signal.SIGSTOP)


def _remove(out):
    for path in _of(out):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _close(out):
    for path in _of(out):
        if path.is_dir():
            for folder, _, _ in [*os.walk(path)]:
                os.chmod(folder, 0o555)
    os.chmod(out.parent, 0o555)


def _open(out):
    os.chmod(out.parent, 0o755)
    for path in _of(out):
        if path.is_dir():
            os.chmod(path, 0o755)
            trial.make_writable(path)


def _fill(_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))


def _set_clock_back(_):
    real = time.time, time.time_ns
    time.time = lambda: real[0]() - 86400
    time.time_ns = lambda: real[1]() - 86400 * 10**9


def _from_tomorrow(out):
    later = time.time() + 86400
    for path in _of(out):
        for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
            os.utime(file, (later, later))


def _be_slow(_):
    sys.addaudithook(lambda event, _: time.sleep(0.2) if event in _EVENTS else None)


def _of(out):
    """What a job has made, hidden folders of unfinished things, too."""
    return [path for path in out.parent.iterdir() if out.stem in path.name or path.name[0] == "."]


KILL = Fault("killed", _send(signal.SIGKILL), (_KILLED,))
FAULTS = (
    KILL,
    Fault("terminated", _send(signal.SIGTERM), (_TERMINATED,)),
    Fault("interrupted", _send(signal.SIGINT), (_STOPPED,)),
    Fault("stopped for a while", _pause, (FINE,)),
    Fault("its folder removed", _remove, (FINE, REFUSED)),
    Fault("its folder closed", _close, (FINE, REFUSED), _open, humble=True),
    Fault("its disk full", _fill, (FINE, REFUSED)),
    Fault("the clock set back", _set_clock_back, (FINE,)),
    Fault("killed, the clock set back", _send(signal.SIGKILL), (_KILLED,), _from_tomorrow),
    Fault("slow storage", _be_slow, (FINE,)),
)


def trials() -> list[Trial]:
    """All of them: each job with each fault, and killed at several moments, once or twice."""
    drawn = [Trial(job, fault, 0) for job in JOBS for fault in FAULTS]
    kills = [Trial(job, KILL, seed, 1 + seed % 2) for seed in range(1, 8) for job in JOBS]
    return [*drawn, *kills]


def run_all(
    chosen: Iterable[Trial], made: Path, scratch: Path, side_by_side: int = 2
) -> Iterator[tuple[Trial, list[str], int]]:
    """Each with what is wrong, and how often it was killed, as they come."""
    chosen = [*chosen]
    jobs = {each.job.name: each.job for each in chosen}
    tasks = [lambda folder, job=job: _whole(job, made, folder) for job in jobs.values()]
    found = {}
    for number, answer in _in_processes(tasks, scratch / "whole", side_by_side):
        name = [*jobs][number]
        if isinstance(answer, str):
            raise RuntimeError(f"{name}: {answer}")
        found[name] = Whole(*answer)
    tasks = [
        lambda folder, each=each: _tried(each, found[each.job.name], made, folder)
        for each in chosen
    ]
    for number, answer in _in_processes(tasks, scratch / "disturbed", side_by_side):
        wrong, kills = ([answer], 0) if isinstance(answer, str) else answer
        yield chosen[number], wrong, kills


def _in_processes(tasks, scratch, side_by_side):
    """What functions of a folder return, each in a process of its own; a text if it failed."""
    waiting, running = iter(enumerate(tasks)), {}
    while True:
        while len(running) < side_by_side and (task := next(waiting, None)) is not None:
            folder = scratch / str(task[0])
            folder.mkdir(parents=True)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    answer = task[1](folder)
                    (folder / "answer.json").write_text(json.dumps(answer))
                    code = 0
                except BaseException as error:
                    (folder / "answer.json").write_text(json.dumps(repr(error)))
                finally:
                    os._exit(code)
            running[pid] = task[0], folder
        if not running:
            return
        pid, _ = os.wait()
        number, folder = running.pop(pid)
        yield number, json.loads((folder / "answer.json").read_text())
        trial.make_writable(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _whole(job, made, folder):
    place = trial.laid_out(job.needs, made, folder)
    codes, said, events = _run(job, place, count=True)
    if {*codes} != {FINE}:
        raise RuntimeError(f"exit codes {codes}: {said[-500:]}")
    return _digest(place, job.out), events


def _tried(each, whole, made, folder):
    job, fault = each.job, each.fault
    place = trial.laid_out(job.needs, made, folder)
    draw = random.Random(each.name)
    wrong, kills = [], 0
    for round_ in range(each.times):
        moment = draw.randrange(int(0.9 * whole.events))  # not all do the same each time
        begun = time.monotonic()
        codes, said, _ = _run(job, place, fault, moment)
        seconds = time.monotonic() - begun
        kills += codes[-1] == _KILLED
        at = f"at {moment} of {whole.events}"
        # One that goes on where another was killed may end before the moment comes.
        if codes[-1] not in (*fault.codes, *((FINE,) if round_ else ())):
            wrong.append(f"{at}: exit code {codes[-1]}: {said[-700:]!r}")
        if "Traceback" in said:
            wrong.append(f"{at}: a traceback: {said[-3000:]!r}")
        if fault.codes == (_TERMINATED,) and seconds > _PATIENCE / 2:
            wrong.append(f"{at}: {seconds:.0f} s")
    if fault.before is not None:
        fault.before(place / job.out)
    codes, said, _ = _run(job, place)
    whole_already = codes == [REFUSED] and "exists already" in said
    if {*codes} != {FINE} and not whole_already:
        wrong.append(f"{at}: then exit codes {codes}: {said[-700:]!r}")
        return wrong, kills
    theirs = _digest(place, job.out)
    if whole_already and job.anew and theirs != whole.digest:  # killed while names were given
        codes, said, _ = _run(job._replace(words=(*job.words, job.anew)), place)
        theirs = _digest(place, job.out) if {*codes} == {FINE} else {}
    for name in sorted(theirs.keys() | whole.digest.keys()):
        if theirs.get(name) != whole.digest.get(name):
            wrong.append(f"{at}: {name} is not the same")
    return wrong, kills


def _run(job, place, fault=None, moment=0, count=False):
    """Exit codes of its processes, what they said, and how often they changed the disk."""
    port = _free_port()
    started = []
    for i in range(job.processes):
        words = job.words
        if job.processes > 1:
            words = (*words, f"--coordinator=127.0.0.1:{port}", f"--process_id={i}")
            words = (*words, f"--num_processes={job.processes}")
        last = i == job.processes - 1  # the one that is disturbed
        meter, told = os.pipe()
        during = _Watch(place / job.out, fault if last else None, moment, told if count else None)
        case = Case("", "", words, during=during.begin, humble=bool(fault and fault.humble))
        pid, pipe = trial.begun(case, place)
        os.close(told)
        started.append([pid, pipe, meter, None, ""])
    patience = _PATIENCE + _TO_MEET * (job.processes > 1)
    late = time.monotonic() + patience
    while any(each[3] is None for each in started):
        for each in started:
            each[4] += trial.said_so_far(each[1])
            if each[3] is None:
                done, status, _ = os.wait4(each[0], os.WNOHANG)
                if not done and time.monotonic() > late:
                    os.killpg(each[0], signal.SIGKILL)
                    done, status, _ = os.wait4(each[0], 0)
                    each[4] += f"no end in {patience} s"
                if done:
                    each[3] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    events = 0
    for each in started:
        each[4] += trial.said_so_far(each[1])
        os.close(each[1])
        with open(each[2], "rb") as file:
            events = len(file.read())
    return [each[3] for each in started], "".join(each[4] for each in started), events


class _Watch:
    """Counts what a process does to the disk, and lets a fault happen at a moment."""

    def __init__(self, out, fault, moment, told):
        self.out, self.fault, self.moment, self.told = out, fault, moment, told
        self.count, self.busy = 0, threading.Lock()

    def begin(self):
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        changes = event in _EVENTS or (event == "open" and "w" in str(arguments[1]))
        if not changes or not self.busy.acquire(blocking=False):
            return
        try:
            if self.told is not None:
                os.write(self.told, b".")
            if self.fault is not None and self.count == self.moment:
                self.fault.happen(self.out)
            self.count += 1
        finally:
            self.busy.release()


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _digest(place, out):
    """What was made, by file; of checkpoints their numbers, since they have the hour in them."""
    found = {}
    for path in _of(place / out):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            name = str(file.relative_to(place))
            if not file.is_file() or "tfevents" in name or name.endswith((".lock", ".html")):
                continue
            if "/checkpoints/" not in name:
                found[name] = _of_content(file)
        if (path / "checkpoints").is_dir():
            saved = checkpoint.load(path)
            leaves = jax.tree_util.tree_leaves_with_path(saved.variables)
            for where, leaf in leaves:
                found[f"{path.name}: {jax.tree_util.keystr(where)}"] = _hash(
                    np.asarray(leaf).tobytes()
                )
            found[f"{path.name}: last step"] = str(saved.step)
    return found


def _of_content(file):
    if file.suffix == ".gpkg":  # it has the hour in it
        return _hash(geopandas.read_file(file).to_json().encode())
    if file.suffix == ".npz":
        with np.load(file) as arrays:
            return _hash(b"".join(name.encode() + arrays[name].tobytes() for name in arrays.files))
    return _hash(file.read_bytes())


def _hash(content):
    return hashlib.sha256(content).hexdigest()
