r"""Procedural scenes for the demo and the tests: made-up terrain, never to be taken for real data.

python -m elev_ssl_jax.data.synthetic --chips 500 --size 64 --out CHIPS

Each scene is a GeoTIFF at 10 m, a DEM at 30 m and a land-cover raster, cut into chips by
elev_ssl_jax.data.chips like anybody's scene.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data import store
from elev_ssl_jax.data.cutting import close_all, cut
from elev_ssl_jax.data.labels import Classes
from elev_ssl_jax.data.planning import Settings, about_all, finish, plan
from elev_ssl_jax.data.prepare import prepare_chips
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.data.source import newest
from elev_ssl_jax.errors import InputError, reported

CHIPS_PER_SIDE = 3
PIXEL_METRES = 10.0
# The 10 m pixels under one cell of the DEM, as Sentinel-2 and SRTM have it.
DEM_FACTOR = 3

CLASSES = Classes(("wild", "farmed"), {0: 0, 1: 1})

# Reflectance (x 10,000) of red, green, blue on flat ground; plants at the bottom, in the middle
# and at the top of the mountains, wet and dry.
_WET = np.array([[420, 800, 400], [600, 880, 480], [1500, 1450, 1350]], np.float32)
_DRY = np.array([[1150, 1150, 700], [1300, 1200, 820], [1900, 1800, 1700]], np.float32)


def make_scene(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: image uint16 [3, size, size], elevation float32 [size / 3, size / 3], labels.

    Elevation is fractal, in metres. Plant cover depends on height, slope, moisture and aspect,
    shading on the slope. Labels, uint8 [size, size], are 1 where land is farmed: on gentle, moist
    slopes, in patches of their own. Farms differ from wild land by their parcels, not by their
    mean colour, and every scene has light and haze of its own, so that colour alone tells little.

    Args:
      seed: The same seed gives the same scene.
      size: Side in pixels, a multiple of `DEM_FACTOR`.
    """
    rng = np.random.default_rng(seed)
    relief = rng.uniform(0.04, 0.18) * size * PIXEL_METRES  # slopes alike at every size
    heights = rng.uniform(100, 2400) + relief * _fractal(rng, size, 2.0)
    heights = np.maximum(heights, 0)
    dy, dx = np.gradient(heights, PIXEL_METRES)
    slope = np.hypot(dx, dy)
    moisture = 0.6 * _fractal(rng, size, 1.6) - 2.0 * (slope - slope.mean())

    # The tree line and the like: where between bottom, middle and top a height lies.
    level = np.clip((heights + 120 * _fractal(rng, size, 1.0)) / 1300, 0, 1.999)
    lower, share = level.astype(int), (level % 1)[..., None]
    wetness = (1 / (1 + np.exp(-2 * moisture)))[..., None]
    plants = [wetness * _WET[lower + i] + (1 - wetness) * _DRY[lower + i] for i in (0, 1)]
    reflectance = (1 - share) * plants[0] + share * plants[1]

    suitable = (1450 - heights) / 500 + 0.3 * moisture - 1.0 * slope
    farmed = _fractal(rng, size, 2.4) + suitable > 0
    wild_texture = 0.22 * _fractal(rng, size, 0.9)
    texture = np.where(farmed, _parcels(rng, size), wild_texture)
    reflectance = reflectance * (1 + texture[..., None])

    azimuth, altitude = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    light = np.sin(altitude) - np.cos(altitude) * (dx * np.cos(azimuth) + dy * np.sin(azimuth))
    light = np.clip(light / np.sqrt(1 + slope**2) / np.sin(altitude), 0.15, 2)
    haze = rng.uniform(0, 400) * np.array([0.6, 0.8, 1.2])
    radiance = reflectance * light[..., None] * rng.uniform(0.85, 1.18, 3) + haze
    radiance += rng.normal(0, 60, radiance.shape)

    image = np.clip(np.rint(radiance), 1, 10000).astype(np.uint16)
    cells = size // DEM_FACTOR
    dem = heights.reshape(cells, DEM_FACTOR, cells, DEM_FACTOR).mean(axis=(1, 3))
    return np.moveaxis(image, -1, 0), dem.astype(np.float32), farmed.astype(np.uint8)


def _fractal(rng, size, roughness):
    """A random field [size, size] with amplitude 1 / frequency^roughness, mean 0 and variance 1."""
    # Twice the size, so that the field doesn't repeat across the scene.
    frequency = np.hypot(np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.normal(size=(2 * size, 2 * size)))
    field = np.fft.irfft2(noise * frequency**-roughness)[:size, :size]
    return (field - field.mean()) / field.std()


def _parcels(rng, size):
    """A relative brightness for each parcel of a turned, irregular grid: [size, size], mean 0."""
    angle = rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:size, :size] + rng.uniform(0, 100, (2, 1, 1))
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    strip = np.floor(across / rng.uniform(6, 12)).astype(int)
    strip -= strip.min()
    offset = rng.uniform(0, 30, strip.max() + 1)[strip]
    parcel = np.floor((along + offset) / rng.uniform(10, 20)).astype(int)
    parcel -= parcel.min()
    brightness = rng.normal(0, 0.22, (strip.max() + 1, parcel.max() + 1))
    return brightness[strip, parcel]


def write_chips(
    folder: Path,
    num_chips: int,
    *,
    size: int = 100,
    elevation_size: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Writes a folder of synthetic chips, as `store` describes it; each scene gives nine.

    Args:
      folder: Made by this call.
      num_chips: How many chips; 9 to a scene.
      size: Side of a chip in pixels.
      elevation_size: Cells along the side of its elevation; a third of `size` by default.
      seed: The same seed gives the same chips.
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
        classes=CLASSES,
    )
    done = 0
    with (
        files.new_folder(folder) as partial,
        tempfile.TemporaryDirectory() as scratch,
        tqdm(total=num_chips, desc="synthetic", unit=" chips", disable=not progress) as bar,
    ):
        for scene in range(-(-num_chips // CHIPS_PER_SIDE**2)):
            image, dem, labels = make_scene(seed * 100_003 + scene, side)
            # Scenes lie in rows of 100, one scene's width apart.
            line, place = divmod(scene, 100)
            left, top = (2 * n * side * PIXEL_METRES for n in (place, -line))
            rasters = {name: Path(scratch) / f"{name}.tif" for name in ("image", "dem", "labels")}
            for path, array in zip(rasters.values(), (image, dem[None], labels[None]), strict=True):
                pixel = PIXEL_METRES * side / array.shape[-1]
                grid = from_origin(300_000 + left, 800_000 + top, pixel, pixel)
                _write_geotiff(path, array, grid)
            name = f"synthetic{scene:04d}"
            files_of_scene = SceneFiles(
                name, {"image": (rasters["image"],)}, rasters["dem"], rasters["labels"]
            )
            about, strips = plan(files_of_scene, settings, partial / name)
            sensors = strips[0].sensors
            for strip in strips:
                kept = cut(strip._replace(most=num_chips - done)).kept
                done += kept
                bar.update(kept)
            finish(files_of_scene, about, strips)
            close_all()
        store.write_about(partial, about_all(settings, sensors))


def folder_of(data: Any, workdir: Path) -> Path:
    """Where `prepare` puts the data that `config.data` asks for: others are other data."""
    return workdir / "synthetic" / f"{data.synthetic.chips}x{data.synthetic.size}"


def point_to(data: Any, workdir: Path) -> None:
    """Sets `config.data` to what `prepare` makes."""
    data.dir = str(folder_of(data, workdir) / "tfds")
    data.name = f"chips/{data.name.split('/')[-1]}"


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
        write_chips(chips_folder, count, size=data.synthetic.size)
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=500, help="how many")
    parser.add_argument("--size", type=int, default=100, help="pixels along a chip's side")
    parser.add_argument("--elevation-size", type=int, help="elevation cells a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    with reported():
        write_chips(
            args.out,
            args.chips,
            size=args.size,
            elevation_size=args.elevation_size,
            seed=args.seed,
        )


if __name__ == "__main__":
    main()
