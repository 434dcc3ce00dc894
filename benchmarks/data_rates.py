"""How fast chips are cut, prepared and read, on this machine.

python benchmarks/data_rates.py

Cutting is compared with itself in one process, reading with TFDS' own decoding, in the same run.
"""

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from elev_ssl_jax.data import chips, prepare, source, synthetic
from elev_ssl_jax.data.cutting import SceneFiles, Settings


def write_scene(folder: Path, side: int) -> SceneFiles:
    """A made-up scene whose DEM and labels lie on grids of their own."""
    image, dem, cover = synthetic.make_scene(0, side)
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
    parser.add_argument("--reads", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scene = write_scene(folder, args.side)
        settings = Settings(stride=args.stride, classes=synthetic.CLASSES)
        rates: dict[int, list[float]] = {1: [], cores: []}
        for i in range(args.rounds):
            for workers, found in rates.items():
                start = time.perf_counter()
                out = folder / f"chips{i}-{workers}"
                done = chips.cut_scenes([scene], settings, out, workers=workers, progress=False)
                found.append(done.kept / (time.perf_counter() - start))
        one, several = (statistics.median(found) for found in rates.values())
        print(f"cutting, 1 process           {one:8,.0f} chips/s")
        print(
            f"cutting, {cores} processes         {several:8,.0f} chips/s, {several / one:.2f} times"
        )

        start = time.perf_counter()
        prepare.prepare_chips(out, folder / "tfds", split_by="block")
        split = source.open_split(
            SimpleNamespace(dir=str(folder / "tfds"), name="chips/segmentation"), "unlabeled"
        )
        prepared = done.kept / (time.perf_counter() - start)
        print(f"preparing, with imports      {prepared:8,.0f} chips/s")
        places = np.random.default_rng(0).integers(0, len(split), args.reads)

        def rate(read, threads):
            start = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(read, map(int, places)):
                    pass
            return len(places) / (time.perf_counter() - start)

        for threads in (1, 4):
            pairs = [
                (rate(split._records.__getitem__, threads), rate(split.__getitem__, threads))
                for _ in range(args.rounds)
            ]
            theirs, ours = (statistics.median(part) for part in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            print(
                f"reading, {threads} thread(s)         {ours:8,.0f} records/s, {ratio:.2f} times "
                f"TFDS' {theirs:,.0f}"
            )


if __name__ == "__main__":
    main()
