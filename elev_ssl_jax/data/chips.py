r"""Cuts scenes, with a DEM and labels, into chips.

python -m elev_ssl_jax.data.chips --image R.tif G.tif B.tif --elevation dem.tif \
    --labels cover.tif --label-values 4 --size 100 --stride 50 --elevation-size 33 --out CHIPS
python -m elev_ssl_jax.data.chips --scenes scenes.csv --classes water=1 forest=4 --out CHIPS
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from elev_ssl_jax import files
from elev_ssl_jax.data import labels, store
from elev_ssl_jax.data.cutting import (
    LARGEST_BLOCK,
    SceneFiles,
    Settings,
    check_settings,
    common,
    cut_all,
    plan,
    total,
    without_what_is_missing,
)
from elev_ssl_jax.data.rasters import check_regular
from elev_ssl_jax.data.scene import check_name, parse_images, parse_nodata
from elev_ssl_jax.errors import InputError, reported


class Summary(NamedTuple):
    """What was cut."""

    scenes: int
    kept: int
    dropped: int
    incomplete: int
    unclassed: int


def cut_scenes(
    scenes: Sequence[SceneFiles],
    settings: Settings,
    out: Path,
    *,
    workers: int = 1,
    progress: bool = True,
) -> Summary:
    """Cuts scenes into a folder, which has its name only when all of them are in it.

    Until then what is finished lies in a hidden folder beside it, and the same call goes on from
    there. An error in one scene leaves the others.

    Args:
      scenes: Their files; names differ.
      settings: How they are cut.
      out: The folder, as `store` describes it.
      workers: Processes.
      progress: Whether to show a bar.

    Raises:
      InputError: A setting is impossible, the folder exists, or a scene can't be cut; each scene
        that can't has a line of its own before.
    """
    check_settings(settings)
    settings = without_what_is_missing(settings, scenes)
    with files.new_folder(out, goes_on=_signature(scenes, settings)) as folder:
        failed: dict[str, str] = {}
        abouts, strips, sensors = {}, {}, {}
        for scene in scenes:
            try:
                about, strips[scene.name] = plan(scene, settings, folder / scene.name)
                abouts[scene.name] = about
                sensors[scene.name] = strips[scene.name][0].sensors
            except InputError as error:
                failed[scene.name] = str(error)
        if sensors:
            agreed = common(sensors)
        todo = [
            strip._replace(sensors=agreed)
            for name in abouts
            for strip in strips[name]
            if store.read_counts(strip.folder) is None
        ]
        whole = sum(strip.windows for some in strips.values() for strip in some)
        done = whole - sum(strip.windows for strip in todo)
        desc = scenes[0].name if len(scenes) == 1 else f"{len(scenes)} scenes"
        with tqdm(total=whole, initial=done, desc=desc, unit=" chips", disable=not progress) as bar:
            for strip, result in cut_all(todo, workers):
                bar.update(strip.windows)
                if isinstance(result, InputError):
                    failed[strip.scene.name] = str(result)
        sums = [0] * len(store.PartCounts._fields)
        for scene in scenes:
            if scene.name in failed:
                continue
            try:
                counts = total(scene, [store.read_counts(s.folder) for s in strips[scene.name]])
            except InputError as error:
                failed[scene.name] = str(error)
                continue
            store.write_scene(folder / scene.name, abouts[scene.name])
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
        _refuse(failed, scenes)
        classes = settings.classes and settings.classes.names
        store.write_about(
            folder, store.About(agreed, settings.size, settings.elevation_size, classes)
        )
    result = store.PartCounts(*sums)
    return Summary(len(scenes), result.kept, result.dropped, result.incomplete, result.unclassed)


def _refuse(failed: dict[str, str], scenes) -> None:
    if not failed:
        return
    if len(scenes) == 1:
        raise InputError(next(iter(failed.values())))
    for name, reason in failed.items():
        print(f"scene {name}: {reason}", file=sys.stderr)
    raise InputError(
        f"{len(failed)} of {len(scenes)} scenes can't be cut, see above; the others are kept, and "
        "the same command goes on with what is missing"
    )


def _signature(scenes, settings) -> str:
    """Whatever changes what is written: a cut that is stopped goes on for the same alone."""
    paths = [
        path
        for scene in scenes
        for path in (*sum(scene.images.values(), ()), scene.elevation, scene.labels)
        if path is not None
    ]
    states = [os.stat(path) if path.exists() else None for path in paths]
    seen = [(str(p), s and (s.st_size, s.st_mtime_ns)) for p, s in zip(paths, states, strict=True)]
    return json.dumps([store.FORMAT, repr(scenes), repr(settings), seen])


def read_scenes(path: Path) -> list[SceneFiles]:
    """The scenes of a table: a row for each, with `name`, `elevation`, `labels` and sensors.

    Every other column is a sensor, whose files are parted by semicolons. Paths are relative to the
    table. Elevation and labels may be empty, or not be there.

    Raises:
      InputError: The table is missing or malformed, a name is there twice, or a file is missing.
    """
    check_regular(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} is not a readable CSV file: {error}") from error
    if "name" not in table:
        raise InputError(f"{path} has no column name")
    names = [c for c in table.columns if c not in ("name", "elevation", "labels")]
    if not names or table.empty:
        raise InputError(f"{path} has no {'scenes' if names else 'column with images'}")
    for i, name in enumerate(names):
        check_name(name, dict.fromkeys(names[:i]))
    scenes: list[SceneFiles] = []
    for row in table.to_dict("records"):
        name = row["name"].strip()
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"{path}: scene {name!r}: a name has letters, digits, _ and -")
        if name in (scene.name for scene in scenes):
            raise InputError(f"{path}: scene {name} is there twice")
        listed = {
            column: tuple(path.parent / part.strip() for part in row[column].split(";"))
            for column in (*names, "elevation", "labels")
            if row.get(column, "").strip()
        }
        for column in names:
            if column not in listed:
                raise InputError(f"{path}: scene {name} has no {column}")
        for column, paths in listed.items():
            for file in paths:
                if not file.is_file():
                    raise InputError(f"{path}: scene {name}: {column} {file} not found")
        for column in ("elevation", "labels"):
            if len(listed.get(column, ())) > 1:
                raise InputError(f"{path}: scene {name}: {column} is one file")
        scenes.append(
            SceneFiles(
                name,
                {column: listed[column] for column in names},
                *(listed.get(column, (None,))[0] for column in ("elevation", "labels")),
            )
        )
    return scenes


def choose_classes(args: Any, scenes: Sequence[SceneFiles]) -> labels.Classes | None:
    """What the arguments about labels say of their classes.

    Raises:
      InputError: They contradict one another, or the labels.
    """
    paths = [scene.labels for scene in scenes if scene.labels is not None]
    given = [
        f"--{name.replace('_', '-')}"
        for name in ("label_values", "classes", "label_field")
        if getattr(args, name) is not None
    ]
    if not paths:
        if given:
            raise InputError(f"{given[0]} is for labels, and there are none; add --labels")
        return None
    if args.label_values is not None and len(given) > 1:
        raise InputError(f"{' and '.join(given)} don't go together; --classes says more")
    if args.classes is not None:
        return labels.parse_classes(args.classes, args.label_field)
    if args.label_field is not None:
        return labels.classes_of_field(paths, args.label_field)
    vectors = [path.suffix.lower() in labels.VECTORS for path in paths]
    if all(vectors):
        if args.label_values is not None:
            raise InputError("--label-values is for rasters; of polygons name the --label-field")
        return labels.inside()
    if any(vectors):
        raise InputError("some labels are rasters and some polygons; name the --classes of all")
    return labels.two_classes([1] if args.label_values is None else args.label_values)


def add_arguments(parser: Any, *, required: bool = True) -> None:
    """The arguments that say what is cut, and how."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument(
        "--image",
        nargs="+",
        action="append",
        metavar="FILE",
        help="GeoTIFFs on one grid; NAME=FILE ..., once for each of several sensors",
    )
    source.add_argument(
        "--scenes", type=Path, help="CSV: name, a column a sensor, elevation, labels"
    )
    parser.add_argument("--elevation", type=Path, help="DEM in metres, any grid")
    parser.add_argument("--labels", type=Path, help="class raster or polygons; may be left out")
    parser.add_argument(
        "--label-values", type=int, nargs="+", help="raster values of class 1 of two (default: 1)"
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME=VALUE[,VALUE...]", help="named classes, in order"
    )
    parser.add_argument("--label-field", help="field of polygons that has their class")
    parser.add_argument("--size", type=int, default=100, help="pixels along a chip's side")
    parser.add_argument("--stride", type=int, help="pixels from chip to chip (default: --size)")
    parser.add_argument("--elevation-size", type=int, default=33, help="elevation cells a side")
    parser.add_argument(
        "--block",
        type=int,
        help="pixels along a spatial block's side (default: a fifth of the scene's shorter side, "
        f"at least --size, at most {LARGEST_BLOCK})",
    )
    parser.add_argument(
        "--nodata",
        nargs="+",
        default=[],
        metavar="VALUE",
        help="image value that means no data, whatever the files say; NAME=VALUE of one sensor",
    )
    parser.add_argument(
        "--max-nodata",
        type=float,
        default=0.0,
        help="largest share of a chip's pixels without data (default: 0, whole chips only)",
    )
    parser.add_argument("--tile", help="name of the scene (default: the first image's)")


def of_arguments(args: Any) -> tuple[list[SceneFiles], Settings]:
    """The scenes, and how they are cut.

    Raises:
      InputError: Arguments don't fit one another.
    """
    if args.scenes is not None:
        for name in ("elevation", "labels", "tile"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name}: with --scenes the table has it")
        scenes = read_scenes(args.scenes)
    else:
        images = parse_images(args.image)
        first = next(iter(images.values()))[0]
        name = re.sub(r"[^\w-]+", "_", args.tile or first.stem)
        sensors = {sensor: tuple(paths) for sensor, paths in images.items()}
        scenes = [SceneFiles(name, sensors, args.elevation, args.labels)]
    return scenes, Settings(
        size=args.size,
        stride=args.stride,
        elevation_size=args.elevation_size,
        block=args.block,
        nodata=parse_nodata(args.nodata, list(scenes[0].images)),
        max_nodata=args.max_nodata,
        classes=choose_classes(args, scenes),
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    with reported():
        scenes, settings = of_arguments(args)
        done = cut_scenes(scenes, settings, args.out, workers=args.workers)
    of_scenes = f" of {done.scenes} scenes" * (done.scenes > 1)
    without = ""
    if done.unclassed:
        without = f"; {done.unclassed} pixels have label values of no class, and are unlabelled"
    print(
        f"{args.out}: {done.kept} chips kept{of_scenes}, {done.dropped} dropped for image nodata; "
        f"{done.incomplete} of those kept are incomplete (elevation missing in part){without}"
    )


if __name__ == "__main__":
    main()
