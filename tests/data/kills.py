"""Kills the making of data at many moments, and lets the same function go on; for test_prepare.

python -m tests.data.kills FOLDER demo|overwrite

The processes are forked from one that has imported TensorFlow, which takes long.
"""

import json
import os
import signal
import sys
from pathlib import Path

import ml_collections

from elev_ssl_jax.data import prepare, source, synthetic
from elev_ssl_jax.runtime import quiet

# What changes the disk, as Python's audit hooks tell of it.
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}
OLD, NEW, DEMO = 5, 3, 8  # test chips


def data(folder, name):
    """Stands for config.data."""
    return ml_collections.ConfigDict(
        {
            "dir": str(folder),
            "name": name,
            "inputs": ("image",),
            "synthetic": {"chips": 40, "size": 12},
        }
    )


def demo(folder):
    synthetic.prepare(data("", "nwrc/classification"), folder)


def first(folder):
    """What `overwrite` finds."""
    synthetic.write_chips(folder / "chips", 20, size=12, progress=False)
    prepare.prepare_chips(folder / "chips", folder / "tfds", num_labeled=3, num_test=OLD)


def overwrite(folder):
    prepare.prepare_chips(
        folder / "chips", folder / "tfds", overwrite=True, num_labeled=3, num_test=NEW
    )


def run(function, folder, kill_at=None):
    """Runs it in a process of its own: what it did to the disk, or None if it was killed."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return None
        assert status == 0, f"{function.__name__} failed, see above"
        return json.loads(said)
    events = []

    def watch(event, arguments):
        if event in EVENTS or (event == "open" and "w" in str(arguments[1])):
            if len(events) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            events.append(event)

    status = 1
    try:
        sys.addaudithook(watch)
        function(folder)
        with open(writer, "w") as pipe:
            pipe.write(json.dumps(events))
        status = 0
    finally:
        os._exit(status)


def main():
    base, kind = Path(sys.argv[1]), sys.argv[2]
    quiet.import_tensorflow()
    if kind == "demo":
        function, name, inside, whole = demo, "chips/classification", "synthetic/40x12/tfds", {DEMO}
    else:
        function, name, inside, whole = overwrite, "chips/segmentation", "tfds", {OLD, NEW}

    def start(number):
        folder = base / str(number)
        folder.mkdir()
        if function is overwrite:
            run(first, folder)
        return folder

    events = run(function, start("whole"))
    moves = [i for i, event in enumerate(events) if event == "os.rename"][-2:]
    # Before and after each step of the exchange at the end, and here and there.
    places = {*moves, *(i + 1 for i in moves), *range(5, len(events), len(events) // 3)}
    for place in sorted(places):
        folder = start(place)
        assert run(function, folder, place) is None
        if function is overwrite:
            assert len(source.open_split(data(folder / inside, name), "test")) in whole
        run(function, folder)
        tests = len(source.open_split(data(folder / inside, name), "test"))
        assert tests == (DEMO if function is demo else NEW)
        versions = [path.name for path in (folder / inside / name).iterdir()]
        assert [v for v in versions if function is overwrite or v[0] != "."] == ["1.0.0"]
    print(f"killed {len(places)} times")


if __name__ == "__main__":
    main()
