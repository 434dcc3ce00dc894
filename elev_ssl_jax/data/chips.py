r"""Cuts scenes, with a DEM and labels, into chips.

python -m elev_ssl_jax.data.chips --image R.tif G.tif B.tif --elevation dem.tif \
    --labels cover.tif --label-values 4 --size 100 --stride 50 --elevation-size 33 --out CHIPS
python -m elev_ssl_jax.data.chips --scenes scenes.csv --classes water=1 forest=4 --out CHIPS
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from elev_ssl_jax import command_line, files
from elev_ssl_jax.data import labels, store
from elev_ssl_jax.data.cutting import cut_all
from elev_ssl_jax.data.planning import (
    LARGEST_BLOCK,
    Quantity,
    Settings,
    about_all,
    check_settings,
    common_sensors,
    finish,
    plan,
    without_what_is_missing,
)
from elev_ssl_jax.data.scene import parse_images, parse_nodata
from elev_ssl_jax.data.scene_files import SceneFiles, read_scenes
from elev_ssl_jax.errors import InputError, reported

_SCENE_CONTENT = ".content"  # in the folder of a scene that is under way: what it is of


class Summary(NamedTuple):
    """What was cut."""

    kept: int
    dropped: int
    incomplete: int
    unclassed: Mapping[str, int]  # pixels of chips, by scene, whose label is of no class
    scenes: int
    absent: list[str]  # classes of no pixel
    unknown: float  # share of the chips' pixels without the quantity

    def __str__(self) -> str:
        of_scenes = f" of {self.scenes} scenes" * (self.scenes > 1)
        text = (
            f"{self.kept} chips kept{of_scenes}, {self.dropped} dropped for image nodata; "
            f"{self.incomplete} of those kept are incomplete (elevation missing in part)"
        )
        if self.absent:
            text += f"; no pixel is of {' or '.join(self.absent)}"
        if self.unknown:
            text += f"; the quantity isn't known of {self.unknown:.1%} of their pixels"
        if not self.unclassed:
            return text
        where = [f"{name}: {count:,}" for name, count in self.unclassed.items()]
        more = ["..."] * (len(where) > 9)
        return (
            f"{text}; {sum(self.unclassed.values()):,} of their pixels have label values of no "
            f"class, and are unlabelled ({', '.join([*where[:9], *more])})"
        )


def sum_up(folder: Path, about: store.About, counts: Mapping[str, store.PartCounts]) -> Summary:
    """Of what each scene in a folder holds."""
    kept, dropped, incomplete, _, _, unknown = map(sum, zip(*counts.values(), strict=True))
    unclassed = {name: some.unclassed for name, some in counts.items() if some.unclassed}
    absent = store.absent_classes(folder, about)
    share = unknown / max(1, kept * about.size**2)
    return Summary(kept, dropped, incomplete, unclassed, len(counts), absent, share)


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
    there. A scene that can't be read leaves the others.

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
    content = json.dumps([store.FORMAT, repr(settings)])
    with files.new_folder(out, goes_on=content) as folder:
        failed: dict[str, str] = {}
        abouts, strips = {}, {}
        for scene in scenes:
            try:
                planned = plan(scene, settings, folder / scene.name)
                abouts[scene.name], strips[scene.name] = planned
            except InputError as error:
                failed[scene.name] = str(error)
        sensors = common_sensors({name: some[0].sensors for name, some in strips.items()})
        readable = [scene for scene in scenes if scene.name in strips]
        _keep_finished(folder, readable, sensors, failed)
        every = [s._replace(sensors=sensors) for some in strips.values() for s in some]
        todo = [strip for strip in every if store.read_counts(strip.folder) is None]
        whole, left = (sum(strip.windows for strip in some) for some in (every, todo))
        name = scenes[0].name if len(scenes) == 1 else f"{len(scenes)} scenes"
        with tqdm(
            total=whole, initial=whole - left, desc=name, unit=" chips", disable=not progress
        ) as bar:
            for strip, result in cut_all(todo, workers):
                bar.update(strip.windows)
                if isinstance(result, InputError):
                    failed[strip.scene.name] = str(result)
        counts = {}
        for scene in scenes:
            if scene.name in failed:
                continue
            try:
                counts[scene.name] = finish(scene, abouts[scene.name], strips[scene.name])
            except InputError as error:
                failed[scene.name] = str(error)
                shutil.rmtree(folder / scene.name)  # cut to the end, and nothing to go on with
        for name in failed:
            if not any((folder / name).glob("[0-9]*")):
                shutil.rmtree(folder / name, ignore_errors=True)
        _refuse(failed, scenes)
        for path in folder.glob(f"*/{_SCENE_CONTENT}"):
            path.unlink()
        about = about_all(settings, sensors)
        summary = sum_up(folder, about, counts)
        store.write_about(folder, about)
    return summary


def _keep_finished(folder, scenes, sensors, unread) -> None:
    """Leaves of a folder that is gone on with what is still of the same scenes, and no more.

    Of `unread` scenes it can't be told, so that what is there of them stays.
    """
    contents = {scene.name: _content(scene, sensors) for scene in scenes}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in unread and not path.name.startswith("."):
            said = path / _SCENE_CONTENT
            if not said.is_file() or said.read_text() != contents.get(path.name):
                shutil.rmtree(path)
            else:
                for unfinished in path.glob(".[0-9]*"):  # of a process that was killed
                    shutil.rmtree(unfinished)
    for name, content in contents.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / _SCENE_CONTENT).write_text(content)


def _content(scene, sensors) -> str:
    """Whatever changes a scene's chips, but for the settings."""
    return json.dumps([repr(scene), repr(sensors), scene.states()])


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


def choose_classes(args: Any, scenes: Sequence[SceneFiles]) -> labels.Classes | None:
    """What the arguments about labels say of their classes.

    Raises:
      InputError: They contradict one another, or the labels.
    """
    paths = {scene.name: scene.labels for scene in scenes if scene.labels is not None}
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
    vectors = [path.suffix.lower() in labels.VECTORS for path in paths.values()]
    if any(vectors) and not all(vectors):
        raise InputError(
            "some labels are rasters and some polygons; cut them apart, with the same names in "
            "--classes, and name both folders to prepare --chips"
        )
    if args.classes is not None:
        if any(vectors) and args.label_field is None:
            raise InputError("--classes of polygons are values of a field; name the --label-field")
        return labels.parse_classes(args.classes, args.label_field)
    if args.label_field is not None:
        return labels.classes_of_field(paths, args.label_field)
    if all(vectors):
        if args.label_values is not None:
            raise InputError("--label-values is for rasters; of polygons name the --label-field")
        return labels.inside()
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
        "--scenes", type=command_line.path, help="CSV: name, a column a sensor, elevation, labels"
    )
    parser.add_argument("--elevation", type=command_line.path, help="DEM in metres, any grid")
    parser.add_argument(
        "--labels", type=command_line.path, help="class raster or polygons; may be left out"
    )
    parser.add_argument(
        "--quantity", type=command_line.path, help="raster of numbers, any grid, to be told"
    )
    parser.add_argument("--quantity-name", default="", help="such as 'canopy height'")
    parser.add_argument("--unit", default="", help="of the quantity, such as m")
    parser.add_argument(
        "--label-values", type=int, nargs="+", help="raster values of class 1 of two (default: 1)"
    )
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME=VALUE[,VALUE...]", help="named classes, in order"
    )
    parser.add_argument("--label-field", help="field of polygons that has their class")
    parser.add_argument(
        "--size", type=command_line.whole(1), default=100, help="pixels along a chip's side"
    )
    parser.add_argument(
        "--stride", type=command_line.whole(1), help="pixels from chip to chip (default: --size)"
    )
    parser.add_argument(
        "--elevation-size", type=command_line.whole(1), default=33, help="elevation cells a side"
    )
    parser.add_argument(
        "--block",
        type=command_line.whole(1),
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
        for name in ("elevation", "labels", "quantity", "tile"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name}: with --scenes the table has it")
        scenes = read_scenes(args.scenes)
    else:
        images = parse_images(args.image)
        first = next(iter(images.values()))[0]
        name = re.sub(r"[^\w-]+", "_", args.tile or first.stem)
        sensors = {sensor: tuple(paths) for sensor, paths in images.items()}
        scenes = [SceneFiles(name, sensors, args.elevation, args.labels, args.quantity)]
    if not any(scene.quantity for scene in scenes):
        for flag, text in (("--quantity-name", args.quantity_name), ("--unit", args.unit)):
            if text:
                raise InputError(f"{flag} is of --quantity, which is missing")
    return scenes, Settings(
        size=args.size,
        stride=args.stride,
        elevation_size=args.elevation_size,
        block=args.block,
        nodata=parse_nodata(args.nodata, list(scenes[0].images)),
        max_nodata=args.max_nodata,
        classes=choose_classes(args, scenes),
        quantity=Quantity(args.quantity_name or "quantity", args.unit),
    )


def main() -> None:
    """The command."""
    parser = command_line.parser("data.chips", __doc__)
    add_arguments(parser)
    command_line.add_workers(parser, os.cpu_count() or 1, "processes (default: one a core)")
    parser.add_argument("--out", type=command_line.path, required=True, help="folder to make")
    args = parser.parse_args()
    with reported():
        scenes, settings = of_arguments(args)
        done = cut_scenes(scenes, settings, args.out, workers=args.workers)
    print(f"{args.out}: {done}")


if __name__ == "__main__":
    main()
