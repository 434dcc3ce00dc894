"""How fast chips are cut, prepared and read, on this machine.

python benchmarks/data_rates.py

Cutting is compared with itself in one process, reading and streaming with TFDS' own decoding, in
the same run.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from elev_ssl_jax.data import chips, prepare, procedural, source, synthetic
from elev_ssl_jax.data.planning import Settings
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.runtime import batches, sharding


def write_scene(folder: Path, side: int) -> SceneFiles:
    """A made-up scene whose DEM and labels lie on grids of their own."""
    image, dem, cover = procedural.make_scene(0, side)
    for name, array, pixel in (
        ("image", image, 10),
        ("dem", dem[None], 30),
        ("cover", cover[None], 11),
    ):
        grid = synthetic.from_origin(299_990, 800_010, pixel, pixel)
        synthetic._write_geotiff(folder / f"{name}.tif", array, grid)
    paths = (folder / f"{name}.tif" for name in ("image", "dem", "cover"))
    image_path, dem_path, cover_path = paths
    return SceneFiles("scene", {"image": (image_path,)}, dem_path, cover_path)


def main() -> None:
    """Prints the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1500, help="pixels along the scene")
    parser.add_argument("--stride", type=int, default=25)
    parser.add_argument("--reads", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scene = write_scene(folder, args.side)
        settings = Settings(stride=args.stride, classes=synthetic.CLASSES[synthetic.ONE])

        def cut(workers, out):
            start = time.perf_counter()
            done = chips.cut_scenes([scene], settings, out, workers=workers, progress=False)
            return done.kept / (time.perf_counter() - start)

        turns = range(args.rounds)
        pairs = [(cut(1, folder / f"{i}-one"), cut(cores, folder / f"{i}-all")) for i in turns]
        say("cutting, processes: 1", f"cutting, processes: {cores}", pairs)

        prepare.prepare_chips(folder / "0-one", folder / "tfds", split_by="block", workers=1)
        data = SimpleNamespace(dir=str(folder / "tfds"), name="chips/segmentation")
        ours = source.open_split(data, "unlabeled")
        tfds = ours._records
        places = np.random.default_rng(0).integers(0, len(ours), args.reads).tolist()

        def read(records, threads):
            start = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(records.__getitem__, places):
                    pass
            return len(places) / (time.perf_counter() - start)

        for threads in (1, 4):
            pairs = [(read(tfds, threads), read(ours, threads)) for _ in turns]
            say("TFDS' reading", f"reading, threads: {threads}", pairs)

        mesh, size = sharding.make_mesh(), 64

        def stream(records):
            names = ("image", "elevation")
            stream = batches.streamed_batches(records, names, mesh, 0, size, 0)
            jax.block_until_ready([next(stream) for _ in range(8)])
            start = time.perf_counter()
            for _ in range(args.reads // size):
                jax.block_until_ready(next(stream))
            return args.reads // size * size / (time.perf_counter() - start)

        say(
            "streaming by TFDS' reading", "streaming", [(stream(tfds), stream(ours)) for _ in turns]
        )


def say(theirs, ours, pairs):
    """Both medians a second, and the median of their ratios."""
    a, b = (statistics.median(part) for part in zip(*pairs, strict=True))
    ratio = statistics.median(y / x for x, y in pairs)
    print(f"{ours:24} {b:8,.0f} chips/s, {ratio:.2f} times {theirs}: {a:,.0f}")


if __name__ == "__main__":
    main()
