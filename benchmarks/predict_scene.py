"""A large made-up scene, predicted: pixels per second, and the most memory that it took.

python benchmarks/predict_scene.py --run RUN --side 20000 --folder FOLDER [--workers 2]

The run has three bands. The scene is written first (two bytes a pixel and band, compressed), and
deleted at the end; the prediction runs in a process of its own, whose memory is what counts. With
`--workers` it is predicted twice, read by one process and by so many: the maps must be the same,
and the ratio of their pixels per second is printed.
"""

import argparse
import re
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window
from tqdm import trange

from elev_ssl_jax.inference.model import load

STRIP = 512


def write_scene(path: Path, side: int, low: float, high: float) -> None:
    """Hills and grain between `low` and `high`, three bands of uint16."""
    rng = np.random.default_rng(0)
    columns = np.arange(side) / 200
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=3,
        dtype="uint16",
        crs="EPSG:32618",
        transform=from_origin(500_000, 800_000, 10, 10),
        tiled=True,
        blockxsize=STRIP,
        blockysize=STRIP,
        compress="deflate",
        zlevel=1,
        bigtiff="yes",
        nodata=0,
    ) as sink:
        for top in trange(0, side, STRIP, desc="writing the scene"):
            rows = (np.arange(top, min(top + STRIP, side)) / 300)[:, None]
            for band in range(3):
                hills = 0.5 + 0.3 * np.sin(rows + band) * np.cos(columns)
                grain = 0.1 * rng.random((len(rows), side), np.float32)
                pixels = (low + (high - low) * (hills + grain)).astype(np.uint16)
                sink.write(pixels, band + 1, window=Window(0, top, side, len(rows)))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path("."))
    parser.add_argument("--workers", type=int, help="processes that read, beside one")
    parser.add_argument("more", nargs="*", help="for elev_ssl_jax.predict, after --")
    args = parser.parse_args()
    lows, highs = zip(*load(args.run).inputs.value_range, strict=True)
    with TemporaryDirectory(dir=args.folder) as folder:
        scene = Path(folder) / "scene.tif"
        write_scene(scene, args.side, max(lows), min(highs))
        rates, maps = [], []
        for workers in (1, args.workers) if args.workers else (1,):
            out = Path(folder) / f"map{workers}.tif"
            command = [sys.executable, "-m", "elev_ssl_jax.predict", "--run", str(args.run)]
            command += ["--image", str(scene), "--out", str(out), "--workers", str(workers)]
            done = subprocess.run([*command, *args.more], check=True, stdout=subprocess.PIPE)
            said = done.stdout.decode().strip()
            print(said)
            rates.append(float(re.search(r"([\d,]+) pixels/s", said)[1].replace(",", "")))
            maps.append(out.read_bytes())
        print(f"{args.side} x {args.side}, {len(maps[0]) / 1e6:.0f} MB")
        if args.workers:
            print(f"ratio: {rates[1] / rates[0]:.2f} with {args.workers} processes that read")
            print("the same map" if maps[0] == maps[1] else "ANOTHER MAP")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak memory {peak / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
