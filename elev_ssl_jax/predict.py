r"""Runs a trained model over a whole scene, and writes a map.

python -m elev_ssl_jax.predict --run RUN --image R.tif G.tif B.tif --out map.tif

A fine-tuned run gives a class for each pixel, a pre-training run elevation in metres.
"""

import argparse
import re

from elev_ssl_jax import command_line
from elev_ssl_jax.data.scene import parse_images, parse_nodata
from elev_ssl_jax.data.scene_files import read_scenes
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.inference.many import map_scenes
from elev_ssl_jax.inference.model import load
from elev_ssl_jax.inference.scenes import files_of, map_scene

_OUTPUTS = ("out", "probabilities", "confidence", "vector", "features")


def main() -> None:
    """The command."""
    parser = command_line.parser("predict", __doc__)
    parser.add_argument(
        "--run", type=command_line.run, required=True, help="folder of a finished run"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--image",
        nargs="+",
        action="append",
        metavar="FILE",
        help="GeoTIFFs on one grid; NAME=FILE ..., once for each of several sensors",
    )
    source.add_argument(
        "--scenes",
        type=command_line.path,
        help="CSV of many: name, a column a sensor, elevation; outputs name folders then",
    )
    parser.add_argument(
        "--elevation", type=command_line.path, help="DEM, for a model that sees elevation"
    )
    parser.add_argument(
        "--out", type=command_line.path, help="map to write; a .png to look at lies beside it"
    )
    parser.add_argument(
        "--probabilities", type=command_line.path, help="GeoTIFF with a band for each class"
    )
    parser.add_argument(
        "--confidence", type=command_line.path, help="GeoTIFF of the told class's probability"
    )
    parser.add_argument(
        "--vector", type=command_line.path, help="GeoPackage with the map's classes as polygons"
    )
    command_line.add_min_area(parser)
    parser.add_argument(
        "--features", type=command_line.path, help="GeoParquet with features of each window"
    )
    parser.add_argument(
        "--window", type=command_line.whole(1), help="pixels along its side (default: a chip's)"
    )
    parser.add_argument(
        "--overlap",
        type=command_line.whole(0),
        help="pixels windows share (default: half of one; of features, none)",
    )
    parser.add_argument(
        "--batch-size", type=command_line.whole(1, 100_000), default=32, help="windows at a time"
    )
    parser.add_argument(
        "--nodata",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="image value that means no data, whatever the files say; NAME=VALUE of one sensor",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="the I-th of N parts, from 1, of the rows of a scene, or of the scenes of a table",
    )
    command_line.add_workers(parser, 1, "processes that read (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    args = vars(parser.parse_args())
    with reported():
        model, table, images = load(args.pop("run")), args.pop("scenes"), args.pop("image")
        outputs = {name: args.pop(name) for name in _OUTPUTS}
        outputs = {name: path for name, path in outputs.items() if path is not None}
        if table is not None:
            if args.pop("elevation") is not None:
                raise InputError("--elevation: with --scenes the table has it")
            scenes = read_scenes(table, all_there=False)
            args["nodata"] = parse_nodata(args["nodata"], list(scenes[0].images))
            counts = map_scenes(model, scenes, outputs, **args)
            written = [*outputs.values()]
        else:
            images = parse_images(images)
            args["nodata"] = parse_nodata(args["nodata"], list(images))
            counts = map_scene(model, images, **outputs, **args)
            written = files_of(outputs, args["shard"])
    print(
        f"{', '.join(map(str, written))}: {counts.windows:,} windows, {counts.pixels:,} pixels in "
        f"{counts.seconds:.0f} s, {counts.pixels / max(counts.seconds, 1e-9):,.0f} pixels/s"
    )


def _shard(words: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", words)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{words!r} is not I/N, with I in 1..N")
    return number, count


if __name__ == "__main__":
    main()
