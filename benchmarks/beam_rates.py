"""Many chips from scenes to shards by Apache Beam: chips a second, and each process' memory.

python benchmarks/beam_rates.py --chips 1000000 --folder FOLDER

Chips are small, so that there can be many; what each costs beside its pixels is what is measured.
The scenes are made-up ones, put side by side; all is deleted at the end. Linux only.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from elev_ssl_jax.data import procedural, synthetic

TILE = 999  # pixels along the made-up scene that is repeated


def write_scenes(folder: Path, scenes: int, side: int) -> Path:
    """A table of scenes whose DEM lies on a grid of its own."""
    image, dem, cover = procedural.make_scene(0, TILE)
    rows = ["name,image,elevation,labels"]
    for number in range(scenes):
        left = 100_000 + number * 2 * side * 10
        names = []
        for name, array, pixel in (("image", image, 10), ("dem", dem, 30), ("cover", cover, 10)):
            array = array if array.ndim == 3 else array[None]
            length = math.ceil(side * 10 / pixel)
            times = [1, *(math.ceil(length / part) for part in array.shape[1:])]
            whole = np.tile(array, times)[:, :length, :length]
            grid = synthetic.from_origin(left, 800_000, pixel, pixel)
            names.append(f"{number}-{name}.tif")
            synthetic._write_geotiff(folder / names[-1], whole, grid)
        rows.append(",".join([f"scene{number}", *names]))
    table = folder / "scenes.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def peaks(root: int, found: dict[int, int]) -> None:
    """Adds the most memory so far, in KiB, of a process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = dict(line.split(":", 1) for line in (path / "status").open())
            parents[int(path.name)] = int(status["PPid"]), int(status["VmHWM"].split()[0])
        except (OSError, KeyError):  # it has ended, or is the kernel's
            continue
    ours = {root}
    while more := {pid for pid, (parent, _) in parents.items() if parent in ours} - ours:
        ours |= more
    for pid in ours & parents.keys():
        found[pid] = max(found.get(pid, 0), parents[pid][1])


def main() -> None:
    """Prints the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=32, help="pixels along a chip")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where there is room")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    stride = args.size // 2
    along = math.ceil(math.sqrt(args.chips / args.scenes))
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        table = write_scenes(folder, args.scenes, args.size + (along - 1) * stride)
        command = [sys.executable, "-m", "elev_ssl_jax.data.prepare", "--beam", "--scenes", table]
        command += ["--size", args.size, "--stride", stride, "--elevation-size", args.size // 3]
        command += ["--label-values", 1, "--data-dir", folder / "tfds", "--runner=DirectRunner"]
        command += ["--direct_running_mode=multi_processing"]
        command += [f"--direct_num_workers={args.workers}"]
        start, memory = time.perf_counter(), dict[int, int]()
        process = subprocess.Popen(list(map(str, command)))
        while process.poll() is None:
            peaks(process.pid, memory)
            time.sleep(1)
        seconds = time.perf_counter() - start
        if process.returncode:
            sys.exit(process.returncode)
        count = args.scenes * along**2
        written = sum(path.stat().st_size for path in (folder / "tfds").rglob("*.array_record*"))
    print(f"{count:,} chips of {args.size} pixels, {args.workers} workers: {seconds:,.0f} s")
    print(f"{count / seconds:,.0f} chips/s, {written / 1e9:.2f} GB of records")
    first, *others = (f"{kib / 1024:,.0f}" for kib in [memory.pop(process.pid), *memory.values()])
    print(f"most memory of the first process {first} MiB, of the others {', '.join(others)} MiB")


if __name__ == "__main__":
    main()
