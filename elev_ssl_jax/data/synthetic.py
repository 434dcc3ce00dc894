r"""Procedural scenes for the demo and the tests: made-up terrain, never to be taken for real data.

python -m elev_ssl_jax.data.synthetic --chips 500 --size 64 --out CHIPS

Each scene is a GeoTIFF at 10 m, or, with --two-sensors, one of a radar and one of an optical
sensor, a DEM at 30 m and a land-cover raster, cut into chips by elev_ssl_jax.data.chips like
anybody's scene.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from tqdm import tqdm

from elev_ssl_jax import command_line, files, storage
from elev_ssl_jax.data import store
from elev_ssl_jax.data.cutting import close_all, cut
from elev_ssl_jax.data.labels import Classes
from elev_ssl_jax.data.planning import Settings, about_all, finish, plan
from elev_ssl_jax.data.prepare import prepare_chips
from elev_ssl_jax.data.procedural import (
    DEM_FACTOR,
    LAND_COVER,
    PIXEL_METRES,
    make_scene,
    make_two_sensor_scene,
)
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.data.source import newest
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.sensors import ELEVATION

CHIPS_PER_SIDE = 3
# What there can be to see of a scene, and its classes: one sensor's, or two sensors'.
ONE, TWO = ("image",), ("s1", "s2")
CLASSES = {
    ONE: Classes(("wild", "farmed"), {0: 0, 1: 1}),
    TWO: Classes(LAND_COVER, {i: i for i in range(len(LAND_COVER))}),
}


def write_chips(
    folder: Path,
    num_chips: int,
    *,
    size: int = 100,
    elevation_size: int | None = None,
    seed: int = 0,
    sensors: tuple[str, ...] = ONE,
    progress: bool = True,
) -> None:
    """Writes a folder of synthetic chips, as `store` describes it; each scene gives nine.

    Args:
      folder: Made by this call.
      num_chips: How many chips; 9 to a scene.
      size: Side of a chip in pixels.
      elevation_size: Cells along the side of its elevation; a third of `size` by default.
      seed: The same seed gives the same chips.
      sensors: `ONE` or `TWO`.
      progress: Whether to show a bar.

    Raises:
      InputError: The folder exists already.
    """
    for name, value in (("--chips", num_chips), ("--size", size)):
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    side = -(-size * CHIPS_PER_SIDE // DEM_FACTOR) * DEM_FACTOR
    settings = Settings(
        size=size,
        elevation_size=elevation_size or max(1, size // DEM_FACTOR),
        block=side,
        classes=CLASSES[sensors],
    )
    done = 0
    with (
        files.new_folder(folder) as partial,
        tempfile.TemporaryDirectory() as scratch,
        tqdm(total=num_chips, desc="synthetic", unit=" chips", disable=not progress) as bar,
    ):
        for scene in range(-(-num_chips // CHIPS_PER_SIDE**2)):
            make = {ONE: make_scene, TWO: make_two_sensor_scene}[sensors]
            *images, dem, labels = make(seed * 100_003 + scene, side)
            # Scenes lie in rows of 100, one scene's width apart.
            line, place = divmod(scene, 100)
            left, top = (2 * n * side * PIXEL_METRES for n in (place, -line))
            names = (*sensors, "dem", "labels")
            rasters = {name: Path(scratch) / f"{name}.tif" for name in names}
            arrays = (*images, dem[None], labels[None])
            for path, array in zip(rasters.values(), arrays, strict=True):
                pixel = PIXEL_METRES * side / array.shape[-1]
                grid = from_origin(300_000 + left, 800_000 + top, pixel, pixel)
                _write_geotiff(path, array, grid)
            name = f"synthetic{scene:04d}"
            files_of_scene = SceneFiles(
                name, {s: (rasters[s],) for s in sensors}, rasters["dem"], rasters["labels"]
            )
            about, strips = plan(files_of_scene, settings, partial / name)
            held = strips[0].sensors
            for strip in strips:
                kept = cut(strip._replace(most=num_chips - done)).kept
                done += kept
                bar.update(kept)
            finish(files_of_scene, about, strips)
            close_all()
        store.write_about(partial, about_all(settings, held))


def folder_of(data: Any, workdir: Path) -> Path:
    """Where `prepare` puts the data that `config.data` asks for: others are other data."""
    name = f"{data.synthetic.chips}x{data.synthetic.size}"
    two = "-two-sensors" if sensors_of(data) == TWO else ""
    if storage.in_bucket(workdir):  # where they couldn't be read
        workdir = Path("~/tensorflow_datasets").expanduser()
    return workdir / "synthetic" / (name + two)


def sensors_of(data: Any) -> tuple[str, ...]:
    """`TWO` if `config.data` names one of two sensors among its inputs, else `ONE`."""
    return TWO if set(TWO) & set(data.inputs) else ONE


def point_to(data: Any, workdir: Path) -> None:
    """Sets `config.data` to what `prepare` makes."""
    data.dir = str(folder_of(data, workdir) / "tfds")
    data.name = f"chips/{data.name.split('/')[-1]}"


def chip_of(data: Any) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and type of each feature of a chip that `prepare` makes, labels aside."""
    size, cells = data.synthetic.size, max(1, data.synthetic.size // DEM_FACTOR)
    bands: dict[str, tuple[int, type]] = {
        "image": (3, np.uint16),
        "s1": (2, np.float32),
        "s2": (13, np.uint16),
    }
    chip = {name: ((size, size, bands[name][0]), bands[name][1]) for name in sensors_of(data)}
    return {**chip, ELEVATION: ((cells, cells), np.float32)}


def counts_of(data: Any) -> dict[str, int]:
    """How many chips `prepare` puts into each split, or nearly so: whole scenes are held out."""
    labelled, test = data.synthetic.chips // 10, data.synthetic.chips // 5
    rest = data.synthetic.chips - labelled - test
    return {"unlabeled": rest, "labeled": labelled, "test": test}


def prepare(data: Any, workdir: Path) -> None:
    """Makes the demo's data in `workdir`, unless they are whole, and points `config.data` to them.

    They are `chips/classification` or `chips/segmentation`, as the last part of `data.name` says.

    Whole scenes are held out, so that no test chip has a neighbour among the others.

    Args:
      data: `config.data`.
      workdir: The run's folder.

    Raises:
      InputError: Another process is making them.
    """
    point_to(data, workdir)
    folder, kind = folder_of(data, workdir), data.name.split("/")[-1]
    if newest(folder / "tfds" / data.name):
        return
    chips_folder, count = folder / "chips", data.synthetic.chips
    if not chips_folder.exists():
        write_chips(chips_folder, count, size=data.synthetic.size, sensors=sensors_of(data))
    prepare_chips(
        chips_folder,
        folder / "tfds",
        config=kind,
        purity=0.8,
        split_by="scene",
        num_labeled=count // 10,
        num_test=count // 5,
    )


def _write_geotiff(path, bands, transform):
    count, height, width = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=bands.dtype,
        crs="EPSG:32618",
        transform=transform,
    ) as sink:
        sink.write(bands)


def main() -> None:
    """The command."""
    parser = command_line.parser("data.synthetic", __doc__)
    parser.add_argument("--chips", type=command_line.whole(1), default=500, help="how many")
    parser.add_argument(
        "--size", type=command_line.whole(1), default=100, help="pixels along a chip's side"
    )
    parser.add_argument(
        "--elevation-size", type=command_line.whole(1), help="elevation cells a side"
    )
    parser.add_argument("--seed", type=command_line.whole(0), default=0)
    parser.add_argument("--two-sensors", action="store_true", help="s1 and s2 rather than image")
    parser.add_argument("--out", type=command_line.path, required=True, help="folder to make")
    args = parser.parse_args()
    with reported():
        write_chips(
            args.out,
            args.chips,
            size=args.size,
            elevation_size=args.elevation_size,
            seed=args.seed,
            sensors=TWO if args.two_sensors else ONE,
        )


if __name__ == "__main__":
    main()
