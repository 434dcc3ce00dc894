r"""Runs a trained model over a whole scene, and writes a map.

python -m elev_ssl_jax.predict --run RUN --image R.tif G.tif B.tif --out map.tif

A fine-tuned run gives a class for each pixel, a pre-training run elevation in metres.
"""

import argparse
from pathlib import Path

from elev_ssl_jax.data.scene import parse_images, parse_nodata
from elev_ssl_jax.errors import reported
from elev_ssl_jax.inference.model import load
from elev_ssl_jax.inference.scenes import map_scene


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument(
        "--image",
        nargs="+",
        action="append",
        required=True,
        metavar="FILE",
        help="GeoTIFFs on one grid; NAME=FILE ..., once for each of several sensors",
    )
    parser.add_argument("--elevation", type=Path, help="DEM, for a model that sees elevation")
    parser.add_argument("--out", type=Path, help="map to write; a .png to look at lies beside it")
    parser.add_argument("--probabilities", type=Path, help="GeoTIFF with a band for each class")
    parser.add_argument("--confidence", type=Path, help="GeoTIFF of the told class's probability")
    parser.add_argument("--vector", type=Path, help="GeoPackage with the map's classes as polygons")
    parser.add_argument(
        "--min-area",
        type=float,
        default=0.0,
        metavar="M2",
        help="square metres; smaller polygons become part of their largest neighbour",
    )
    parser.add_argument("--features", type=Path, help="GeoParquet with features of each window")
    parser.add_argument("--window", type=int, help="pixels along its side (default: a chip's)")
    parser.add_argument(
        "--overlap", type=int, help="pixels windows share (default: half of one; of features, none)"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="windows at a time")
    parser.add_argument(
        "--nodata",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="image value that means no data, whatever the files say; NAME=VALUE of one sensor",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    args = vars(parser.parse_args())
    with reported():
        images = parse_images(args.pop("image"))
        nodata = parse_nodata(args.pop("nodata"), list(images))
        counts = map_scene(load(args.pop("run")), images, nodata=nodata, **args)
    written = [args["out"], args["out"] and args["out"].with_suffix(".png")]
    written += [args[name] for name in ("probabilities", "confidence", "vector", "features")]
    print(
        f"{', '.join(str(path) for path in written if path)}: {counts.windows:,} windows, "
        f"{counts.pixels:,} pixels in {counts.seconds:.0f} s, "
        f"{counts.pixels / counts.seconds:,.0f} pixels/s"
    )


if __name__ == "__main__":
    main()
