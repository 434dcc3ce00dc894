"""Builds the TFDS dataset from a folder of chips.

python -m elev_ssl_jax.data.prepare --chips CHIPS --config classification
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elev_ssl_jax import files
from elev_ssl_jax.data import layout, source
from elev_ssl_jax.errors import InputError, reported


def prepare(
    chips: Path,
    data_dir: Path | None = None,
    *,
    config: str = "segmentation",
    bands: Sequence[int] | None = None,
    overwrite: bool = False,
    split_by: str | None = None,
    allow_overlap: bool = False,
    **split_settings: Any,
) -> Path:
    """Builds `nwrc/<config>` under `data_dir` and returns the folder that holds it.

    Nothing is written under that name until all of it is, and what is there stays until then.
    Sizes are those of the first chip. Prints how the chips were split, and how many test chips
    share ground with training chips.

    Args:
      chips: A folder in the reference layout.
      data_dir: TFDS' folder; ~/tensorflow_datasets by default.
      config: "segmentation" or "classification".
      bands: Which bands to keep, counted from 0; the first three by default.
      overwrite: Whether to build again what is there already.
      split_by: "random", "tile" or "block"; by default "random" if no chips share ground, else
        "block".
      allow_overlap: Whether "random" will do for chips that share ground.
      **split_settings: `purity`, `num_labeled`, `num_test` of `tfds_nwrc.splits.assign`.

    Raises:
      InputError: A file is missing or malformed, the settings don't fit the data, or another
        process is preparing them.
    """
    rows = layout.read_metadata(chips)
    image = layout.read_image(chips / layout.IMAGES / rows["Image"][0], bands)
    bands = tuple(range(min(3, image.shape[-1]))) if bands is None else tuple(bands)

    try:
        import tfds_nwrc
    except ModuleNotFoundError:  # a checkout that is not installed
        sys.path.append(str(Path(__file__).parents[2] / "data"))
        import tfds_nwrc
    from tfds_nwrc import splits

    data_dir = (data_dir or Path("~/tensorflow_datasets")).expanduser()
    name = Path(tfds_nwrc.Nwrc.name, config, str(tfds_nwrc.Nwrc.VERSION))
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
            split_by, why = splits.choose(rows, split_by, allow_overlap=allow_overlap)
            if why:
                print(f"--split-by {split_by}: {why}")
            counts, shared_ground = tfds_nwrc.build(
                chips,
                unfinished / "tfds",
                config=config,
                size=image.shape[:2],
                elevation_size=layout.elevation_size(chips, rows),
                bands=bands,
                split_by=split_by,
                allow_overlap=allow_overlap,
                **split_settings,
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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=Path, required=True, help="folder of chips")
    parser.add_argument("--data-dir", type=Path, help="default: ~/tensorflow_datasets")
    parser.add_argument(
        "--config", choices=("segmentation", "classification"), default="segmentation"
    )
    parser.add_argument(
        "--purity", type=float, default=1.0, help="least share of one class (classification)"
    )
    parser.add_argument(
        "--split-by",
        choices=("random", "tile", "block"),
        help="tile, block: keep whole ones, and what overlaps them, out of training (default: "
        "random where no chips share ground, else block)",
    )
    parser.add_argument(
        "--allow-overlap",
        action="store_true",
        help="let --split-by random put chips that share ground into training and test",
    )
    parser.add_argument("--labeled", type=int, dest="num_labeled", help="chips in `labeled`")
    parser.add_argument("--test", type=int, dest="num_test", help="chips in `test`")
    parser.add_argument("--bands", type=int, nargs="+", help="from 0 (default: 0 1 2)")
    parser.add_argument("--overwrite", action="store_true", help="build again what is there")
    args = vars(parser.parse_args())
    with reported():
        prepare(args.pop("chips"), args.pop("data_dir"), **args)


if __name__ == "__main__":
    main()
