r"""The classes of a finished map, or of one in parts, as polygons.

python -m elev_ssl_jax.polygons --map map.*of8.tif --out classes.gpkg --min-area 5000
"""

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import rasterio
from rasterio.io import MemoryFile

from elev_ssl_jax import command_line, files
from elev_ssl_jax.data.rasters import open_raster, reading
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.inference import polygons
from elev_ssl_jax.inference.maps import check_classes


def write(paths: Sequence[Path], out: Path, *, min_area: float = 0.0) -> int:
    """Writes what `predict --vector` writes with a map; the number of polygons.

    Args:
      paths: The map, or its parts by `predict --shard`, in any order.
      out: GeoPackage.
      min_area: As `least` of `inference.polygons.write`.

    Raises:
      InputError: A file is no map of classes, or no part of the same map, or a part is missing
        between others; or `out` can't be written.
    """
    if out.suffix != ".gpkg":
        raise InputError(f"--out is {out}; name a .gpkg")
    polygons.check_least(min_area)
    with ExitStack() as stack:
        parts = [open_raster(path, stack) for path in paths]
        names = [check_classes(path, part) for path, part in zip(paths, parts, strict=True)]
        whole = stack.enter_context(_joined(parts))
        try:
            partial = stack.enter_context(files.new_file(out))
            return polygons.write(partial, whole, names[0], min_area)
        except OSError as error:
            raise InputError(f"--out={out} can't be written: {error}") from error


@contextmanager
def _joined(parts):
    """A map whose parts lie one below the other."""
    parts = sorted(parts, key=lambda part: (~parts[0].transform @ part.transform).f)
    first, rows = parts[0], 0
    for part in parts:
        at = ~first.transform @ part.transform
        wanted = rasterio.Affine.translation(0, rows)
        alike = (part.crs, part.width, part.tags()) == (first.crs, first.width, first.tags())
        if not alike or not at.almost_equals(wanted, 1e-3):
            raise InputError(
                f"{part.name} doesn't go on where {parts[max(0, parts.index(part) - 1)].name} "
                "ends; name the parts of one map, all of them"
            )
        rows += part.height
    arrays = []
    for part in parts:
        with reading(part.name):
            arrays.append(part.read())
    profile = {**first.profile, "height": rows, "driver": "GTiff"}
    with MemoryFile() as file:
        with file.open(**profile) as sink:
            sink.write(np.concatenate(arrays, axis=1))
        with file.open() as source:
            yield source


def main() -> None:
    """The command."""
    parser = command_line.parser("polygons", __doc__)
    parser.add_argument(
        "--map",
        type=command_line.path,
        nargs="+",
        required=True,
        help="the map of classes, as predict writes it, or all its parts",
    )
    parser.add_argument("--out", type=command_line.path, required=True, help="GeoPackage to write")
    command_line.add_min_area(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    args = parser.parse_args()
    with reported():
        files.check_outputs([args.out], inputs=args.map, overwrite=args.overwrite)
        print(f"{args.out}: {write(args.map, args.out, min_area=args.min_area):,} polygons")


if __name__ == "__main__":
    main()
