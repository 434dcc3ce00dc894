"""A large made-up scene, predicted: pixels per second, and the most memory that it took.

python benchmarks/predict_scene.py --run RUN --side 20000 --folder FOLDER

The run has three bands. The scene is written first (two bytes a pixel and band, compressed), and
deleted at the end; the prediction runs in a process of its own, whose memory is what counts.
"""

import argparse
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
    parser.add_argument("more", nargs="*", help="for elev_ssl_jax.predict, after --")
    args = parser.parse_args()
    ((low, high),) = load(args.run).inputs.value_range
    with TemporaryDirectory(dir=args.folder) as folder:
        scene, out = Path(folder) / "scene.tif", Path(folder) / "map.tif"
        write_scene(scene, args.side, low, high)
        command = [sys.executable, "-m", "elev_ssl_jax.predict", "--run", str(args.run)]
        command += ["--image", str(scene), "--out", str(out), *args.more]
        subprocess.run(command, check=True)
        with rasterio.open(out) as source:
            print(f"{source.width} x {source.height}, {out.stat().st_size / 1e6:.0f} MB")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak memory {peak / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
