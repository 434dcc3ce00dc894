"""Builds the TFDS dataset from folders of chips.

python -m elev_ssl_jax.data.prepare --chips CHIPS --config classification
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elev_ssl_jax import files
from elev_ssl_jax.data import source, store
from elev_ssl_jax.errors import InputError, reported


def prepare_chips(
    chips: Path | Sequence[Path],
    data_dir: Path | None = None,
    *,
    config: str = "segmentation",
    bands: Mapping[str, Sequence[int]] | Sequence[int] | None = None,
    overwrite: bool = False,
    split_by: str | None = None,
    allow_overlap: bool = False,
    workers: int = 1,
    **split_settings: Any,
) -> Path:
    """Builds `chips/<config>` under `data_dir` and returns the folder that holds it.

    A folder in the layout of the NWRC data gives `nwrc/<config>`. Nothing is written under that
    name until all of it is, and what is there stays until then. Prints how the chips were split,
    and how many test chips share ground with training chips.

    Args:
      chips: Folders of `elev_ssl_jax.data.chips`, or one in the layout of the NWRC data.
      data_dir: TFDS' folder; ~/tensorflow_datasets by default.
      config: "segmentation" or "classification".
      bands: Which bands to keep of each sensor, or of the only one, counted from 0; by default
        all, and of the NWRC data the first three.
      overwrite: Whether to build again what is there already.
      split_by: "random", "scene", "tile" or "block"; by default "random" if no chips share ground,
        else "block".
      allow_overlap: Whether "random" will do for chips that share ground.
      workers: Processes.
      **split_settings: `purity`, `coverage`, `num_labeled`, `num_test` of `splits.assign`.

    Raises:
      InputError: A file is missing or malformed, the settings don't fit the data, or another
        process is preparing them.
    """
    folders = [chips] if isinstance(chips, Path) else list(chips)
    tfds_chips, tfds_nwrc = _import_builders()
    from elev_ssl_jax.data import splits

    settings: dict[str, Any] = {
        "config": config,
        "workers": workers,
        "split_settings": {
            "split_by": split_by,
            "allow_overlap": allow_overlap,
            **split_settings,
        },
    }
    others = [folder for folder in folders if not store.is_store(folder)]
    if not others:
        about = store.common(folders)
        builder, rows = tfds_chips.Chips, store.read_tables(folders)
        settings |= {"folders": folders, "bands": _bands(bands, about)}
    else:
        builder = tfds_nwrc.Nwrc
        if len(folders) > 1:
            raise InputError(f"{others[0]} is not a folder of elev_ssl_jax.data.chips")
        rows, sizes = tfds_nwrc.look(folders[0], bands)
        settings |= sizes

    data_dir = (data_dir or Path("~/tensorflow_datasets")).expanduser()
    name = Path(builder.name, config, str(builder.VERSION))
    target = data_dir / name
    # Both on the disk of `target`, and hidden: TFDS takes other names for versions.
    unfinished = target.with_name(f".{target.name}.unfinished")
    old = target.with_name(f".{target.name}.old")
    with files.sole_writer(unfinished, f"{target} is being prepared by another process"):
        # What a stop has left: in the middle of writing, or of the exchange below.
        shutil.rmtree(unfinished / "tfds", ignore_errors=True)
        if old.exists() and not source.is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            old.rename(target)
        try:
            if source.is_whole(target) and not overwrite:
                raise InputError(f"{target} exists already; --overwrite builds it again")
            chosen, why = splits.choose(rows, split_by, allow_overlap=allow_overlap)
            if why:
                print(f"--split-by {chosen}: {why}")
            counts, shared_ground = tfds_chips.build(
                builder, folders[0], unfinished / "tfds", **settings
            )
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)  # which `source.newest` finds, until the next line is done
            (unfinished / "tfds" / name).rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    sizes = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{target}: {sizes} ({sum(counts.values())} of {len(rows)} chips)")
    print(shared_ground)
    return target


def _import_builders():
    from elev_ssl_jax.runtime import quiet

    quiet.import_tensorflow()
    try:
        import tfds_chips
        import tfds_nwrc
    except ModuleNotFoundError:  # a checkout that is not installed
        sys.path.append(str(Path(__file__).parents[2] / "data"))
        import tfds_chips
        import tfds_nwrc
    return tfds_chips, tfds_nwrc


def _bands(bands, about: store.About) -> dict[str, list[int]]:
    """By sensor."""
    if bands is None:
        return {}
    if not isinstance(bands, Mapping):
        if len(about.sensors) > 1:
            raise InputError(f"--bands: say of which sensor: {next(iter(about.sensors))}=0,1,2")
        bands = dict.fromkeys(about.sensors, bands)
    for name, chosen in bands.items():
        if name not in about.sensors:
            raise InputError(f"--bands: there is no sensor {name}; {', '.join(about.sensors)}")
        count = about.sensors[name]["bands"]
        for band in chosen:
            if not 0 <= band < count:
                raise InputError(f"--bands: {name} has {count} bands; band {band} is asked for")
        if not chosen or len(set(chosen)) < len(chosen):
            raise InputError(f"--bands: of {name} different bands are needed")
    return {name: list(chosen) for name, chosen in bands.items()}


def parse_bands(arguments: Sequence[str]) -> dict[str, list[int]] | list[int]:
    """`--bands` arguments: numbers, or NAME=NUMBER[,NUMBER...] for each sensor.

    Raises:
      InputError: They are neither.
    """
    try:
        if not any("=" in text for text in arguments):
            return [int(text) for text in arguments]
        parts = [text.split("=", 1) for text in arguments]
        return {name: [int(n) for n in numbers.split(",")] for name, numbers in parts}
    except ValueError as error:
        raise InputError(f"--bands {' '.join(arguments)}: numbers, or NAME=0,1,2") from error


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=Path, nargs="+", required=True, help="folders of chips")
    parser.add_argument("--data-dir", type=Path, help="default: ~/tensorflow_datasets")
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
    parser.add_argument("--labeled", type=int, dest="num_labeled", help="chips in `labeled`")
    parser.add_argument("--test", type=int, dest="num_test", help="chips in `test`")
    parser.add_argument(
        "--bands",
        nargs="+",
        help="from 0; NAME=0,1,2 of one of several sensors (default: all; of NWRC data 0 1 2)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    args = vars(parser.parse_args())
    with reported():
        bands = args.pop("bands")
        bands = None if bands is None else parse_bands(bands)
        prepare_chips(args.pop("chips"), args.pop("data_dir"), bands=bands, **args)


if __name__ == "__main__":
    main()
