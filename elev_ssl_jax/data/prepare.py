"""Builds the TFDS dataset from folders of chips.

python -m elev_ssl_jax.data.prepare --chips CHIPS --config classification
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from elev_ssl_jax import command_line, files
from elev_ssl_jax.data import band_choice, chips, cutting, planning, source, store
from elev_ssl_jax.data.scene_files import SceneFiles
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.runtime.beam import run as run_beam

# What data with splits of their own have no use for, and what it is if nobody asks for it.
_DEFAULTS: dict[str, Any] = {
    "config": "segmentation",
    "bands": None,
    "split_by": None,
    "allow_overlap": False,
    "purity": 1.0,
    "coverage": 1.0,
    "num_labeled": None,
    "num_test": None,
}


def prepare_chips(
    folders: Path | Sequence[Path],
    data_dir: Path | None = None,
    *,
    config: str = "segmentation",
    bands: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    overwrite: bool = False,
    split_by: str | None = None,
    allow_overlap: bool = False,
    workers: int = 1,
    beam: Sequence[str] | None = None,
    **split_settings: Any,
) -> Path:
    """Builds `chips/<config>` under `data_dir` and returns the folder that holds it.

    A folder in the layout of the NWRC data gives `nwrc/<config>`, one of SEN12MS `sen12ms`, and one
    of DFC2020 `dfc2020`. Nothing is written under that name until all of it is, and what is there
    stays until then. Prints how the chips were split, and how many test chips share ground with
    training chips.

    Args:
      folders: Of `elev_ssl_jax.data.chips`, or one in the layout of the NWRC data, of SEN12MS or of
        DFC2020; these two have splits of their own, and take none of the settings of splits.
      data_dir: TFDS' folder; ~/tensorflow_datasets by default.
      config: "segmentation" or "classification".
      bands: Which bands to keep of each sensor, or of the only one, counted from 0; by default
        all, and of the NWRC data the first three.
      overwrite: Whether to build again what is there already.
      split_by: "random", "scene", "tile" or "block"; by default "random" if no chips share ground,
        else "block".
      allow_overlap: Whether "random" will do for chips that share ground.
      workers: Processes.
      beam: Options of Apache Beam, which writes the files then; for SEN12MS and DFC2020.
      **split_settings: `purity`, `coverage`, `num_labeled`, `num_test` of `splits.assign`.

    Raises:
      InputError: A file is missing or malformed, the settings don't fit the data, or another
        process is preparing them.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    tfds_chips, tfds_nwrc, *more = _import_builders()
    others = [folder for folder in folders if not store.is_store(folder)]
    if others and len(folders) > 1:
        raise InputError(f"{others[0]} is not a folder of elev_ssl_jax.data.chips")
    split_settings |= {"split_by": split_by, "allow_overlap": allow_overlap}
    settings: dict[str, Any] = {"workers": workers}
    if others and (builder := _with_own_splits(others[0], more)):
        _refuse(builder.name, {"config": config, "bands": bands, **split_settings})
        config, settings["beam"] = "", beam
        folders = [others[0].absolute()]  # Beam's workers may start elsewhere
    else:
        if beam is not None:
            raise InputError("--beam goes with --scenes or --image, or with SEN12MS or DFC2020")
        if others:
            builder = tfds_nwrc.Nwrc
            settings |= tfds_nwrc.look(folders[0], bands)
        else:
            builder, about = tfds_chips.Chips, store.common_about(folders)
            settings |= {"folders": folders, "bands": band_choice.sensors(bands, about)}
        settings |= {"config": config, "split_settings": split_settings}
    with _new_version(builder, data_dir, config, overwrite) as (unfinished, target):
        built = tfds_chips.build(builder, folders[0], unfinished, **settings)
    _say_what(target, built)
    return target


def _with_own_splits(folder, builders):
    """The builder whose data a folder has; None if it has none of these."""
    found = [builder for builder in builders if builder.is_there(folder)]
    if len(found) > 1:
        raise InputError(
            f"{folder} holds both SEN12MS and DFC2020; put each in a folder of its own"
        )
    return found[0] if found else None


def _refuse(name, settings) -> None:
    """Refuses what data with splits of their own would pass over."""
    for setting, default in _DEFAULTS.items():
        if settings.get(setting, default) != default:
            flag = setting.removeprefix("num_").replace("_", "-")
            raise InputError(f"--{flag} is not for {name}, whose splits and bands are fixed")


def prepare_scenes(
    scenes: Sequence[SceneFiles],
    cut: planning.Settings,
    data_dir: Path | None = None,
    *,
    beam: Sequence[str] = (),
    config: str = "segmentation",
    bands: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    overwrite: bool = False,
    split_by: str | None = None,
    allow_overlap: bool = False,
    **split_settings: Any,
) -> Path:
    """As `prepare_chips` of what `chips.cut_scenes` makes, but by Apache Beam, and at once.

    First all scenes are looked through for where chips are and what classes they have, then each
    shard's chips are cut and written. The files are those that `prepare_chips` writes.

    Args:
      scenes: Their files, which all workers see, as they do `data_dir`.
      cut: How they are cut.
      data_dir: See `prepare_chips` for this and what follows.
      beam: Options of Beam, as `--runner=...`.
      config: See there.
      bands: See there.
      overwrite: See there.
      split_by: See there.
      allow_overlap: See there.
      **split_settings: See there.

    Raises:
      InputError: As `prepare_chips` and `chips.cut_scenes`.
    """
    tfds_chips, *_ = _import_builders()
    split_settings |= {"split_by": split_by, "allow_overlap": allow_overlap}
    scenes = [scene.absolute() for scene in scenes]  # workers may start elsewhere
    with _new_version(tfds_chips.Chips, data_dir, config, overwrite) as (unfinished, target):
        index = unfinished.parent / "index"
        about, cut, summary = look_through(scenes, cut, index, beam)
        reader = tfds_chips.SceneReader({s.name: s for s in scenes}, cut, about.sensors)
        built = tfds_chips.build(
            tfds_chips.Chips,
            index,
            unfinished,
            config=config,
            folders=[index],
            scenes=reader,
            bands=band_choice.sensors(bands, about),
            beam=beam,
            split_settings=split_settings,
        )
    print(summary)
    _say_what(target, built)
    return target


def look_through(
    scenes: Sequence[SceneFiles],
    settings: planning.Settings,
    folder: Path,
    beam: Sequence[str],
) -> tuple[store.About, planning.Settings, chips.Summary]:
    """A folder as `chips.cut_scenes` makes it, but without the chips.

    Returns:
      What the chips have in common, how they are to be cut, and what was counted.

    Raises:
      InputError: A scene can't be cut, or nothing is left of it.
    """
    planning.check_settings(settings)
    settings = planning.without_what_is_missing(settings, scenes)
    abouts, strips = {}, {}
    for scene in scenes:
        try:
            abouts[scene.name], strips[scene.name] = planning.plan(
                scene, settings, folder / scene.name
            )
        except InputError as error:
            raise InputError(f"scene {scene.name}: {error}") from error
    sensors = planning.common_sensors({name: some[0].sensors for name, some in strips.items()})
    for name in abouts:
        (folder / name).mkdir(parents=True)
    tasks = (s._replace(sensors=sensors) for some in strips.values() for s in some)
    run_beam(cutting.index, tasks, folder / "tasks", beam)
    shutil.rmtree(folder / "tasks")
    counts = {}
    for scene in scenes:
        try:
            counts[scene.name] = planning.finish(scene, abouts[scene.name], strips[scene.name])
        except InputError as error:
            raise InputError(f"scene {scene.name}: {error}") from error
    about = planning.about_all(settings, sensors)
    store.write_about(folder, about)
    return about, settings, chips.sum_up(folder, about, counts)


@contextmanager
def _new_version(builder, data_dir, config, overwrite) -> Iterator[tuple[Path, Path]]:
    """A folder for TFDS to write to, and the one that takes its place when that is done.

    Raises:
      InputError: It is there already, or another process is at it.
    """
    data_dir = (data_dir or Path("~/tensorflow_datasets")).expanduser().absolute()
    name = Path(builder.name, config, str(builder.VERSION))
    target = data_dir / name
    made = [parent for parent in (data_dir, *target.parents) if not parent.exists()]
    # Both on the disk of `target`, and hidden: TFDS takes other names for versions.
    unfinished = target.with_name(f".{target.name}.unfinished")
    old = target.with_name(f".{target.name}.old")
    files.check_ours(unfinished)
    with files.sole_writer(unfinished, f"{target} is being prepared by another process"):
        # What a stop has left: in the middle of writing, or of the exchange below.
        for left in ("tfds", "index"):
            shutil.rmtree(unfinished / left, ignore_errors=True)
        if old.exists() and not source.is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            old.rename(target)
        try:
            if source.is_whole(target) and not overwrite:
                raise InputError(f"{target} exists already; --overwrite builds it again")
            yield unfinished / "tfds", target
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)  # which `source.newest` finds, until the next line is done
            (unfinished / "tfds" / name).rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            files.remove_owned(unfinished)
            with suppress(OSError):  # others are there
                for parent in target.parents:
                    if parent in made or (parent != data_dir and data_dir in parent.parents):
                        parent.rmdir()


def _say_what(target, built) -> None:
    if built.how:
        print(built.how)
    sizes = ", ".join(f"{number} {split}" for split, number in built.counts.items())
    print(f"{target}: {sizes} ({sum(built.counts.values())} of {built.chips} chips)")
    if built.shared_ground:
        print(built.shared_ground)


def _import_builders():
    from elev_ssl_jax.runtime import quiet

    quiet.import_tensorflow()
    try:
        import tfds_dfc2020
    except ModuleNotFoundError:  # a checkout that is not installed, or was before there was this
        sys.path.append(str(Path(__file__).parents[2] / "data"))
        import tfds_dfc2020
    import tfds_chips
    import tfds_nwrc
    import tfds_sen12ms

    return tfds_chips, tfds_nwrc, tfds_sen12ms.Sen12ms, tfds_dfc2020.Dfc2020


def main() -> None:
    """The command."""
    parser = command_line.parser("data.prepare", __doc__)
    parser.add_argument(
        "--chips",
        type=command_line.path,
        nargs="+",
        help="folders of chips, or that of SEN12MS or DFC2020",
    )
    parser.add_argument("--data-dir", type=command_line.path, help="default: ~/tensorflow_datasets")
    parser.add_argument(
        "--config", choices=("segmentation", "classification"), default="segmentation"
    )
    parser.add_argument(
        "--purity", type=float, default=1.0, help="least share of one class (classification)"
    )
    parser.add_argument(
        "--coverage",
        type=float,
        default=1.0,
        help="least share of labelled pixels of a labeled or test chip (default: 1)",
    )
    parser.add_argument(
        "--split-by",
        choices=("random", "scene", "tile", "block"),
        help="scene, tile, block: keep whole ones, and what overlaps them, out of training "
        "(default: random where no chips share ground, else block)",
    )
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="let --split-by random put chips that share ground into training and test",
    )
    parser.add_argument(
        "--labeled", type=command_line.whole(0), dest="num_labeled", help="chips in `labeled`"
    )
    parser.add_argument(
        "--test", type=command_line.whole(0), dest="num_test", help="chips in `test`"
    )
    parser.add_argument(
        "--bands",
        nargs="+",
        help="from 0; NAME=0,1,2 of one of several sensors (default: all; of NWRC data 0 1 2)",
    )
    command_line.add_workers(parser, None, "processes (default: one a core; not with --beam)")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    group = parser.add_argument_group(
        "straight from scenes, by Apache Beam", "as for elev_ssl_jax.data.chips; the rest is Beam's"
    )
    group.add_argument(
        "--beam",
        action="store_true",
        help="cut and write on Beam's workers; with --chips of SEN12MS or DFC2020, write",
    )
    chips.add_arguments(group, required=False)
    args, more = parser.parse_known_args()
    with reported():
        settings = {
            name: getattr(args, name)
            for name in ("config", "overwrite", "split_by", "allow_overlap", "purity", "coverage")
        }
        settings |= {"num_labeled": args.num_labeled, "num_test": args.num_test}
        settings["bands"] = None if args.bands is None else band_choice.parse(args.bands)
        if args.chips is None and not args.beam:
            raise InputError("either --chips is needed, or --beam with --scenes or --image")
        alone = argparse.ArgumentParser()
        chips.add_arguments(alone, required=False)
        for name, default in vars(alone.parse_args([])).items():
            if args.chips is not None and getattr(args, name) != default:
                raise InputError(
                    f"--{name.replace('_', '-')} is for cutting, by elev_ssl_jax.data.chips or "
                    "with --beam; these chips are cut"
                )
        if args.beam and args.workers is not None:
            raise InputError("--workers: with --beam say so to its runner")
        if args.beam and args.chips is None:
            if args.scenes is None and args.image is None:
                raise InputError("--beam needs --scenes, or --image")
            scenes, cut = chips.of_arguments(args)
            prepare_scenes(scenes, cut, args.data_dir, beam=more, **settings)
            return
        if more and not args.beam:
            raise InputError(f"unknown argument {more[0]}")
        workers, beam = args.workers or os.cpu_count() or 1, more if args.beam else None
        prepare_chips(args.chips, args.data_dir, workers=workers, beam=beam, **settings)


if __name__ == "__main__":
    main()
