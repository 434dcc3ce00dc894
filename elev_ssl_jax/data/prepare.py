"""Builds the TFDS dataset from a folder of chips.

python -m elev_ssl_jax.data.prepare --chips CHIPS --config classification
"""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elev_ssl_jax.data import layout
from elev_ssl_jax.errors import InputError, reported


def prepare(
    chips: Path,
    data_dir: Path | None = None,
    *,
    config: str = "segmentation",
    bands: Sequence[int] | None = None,
    overwrite: bool = False,
    **split_settings: Any,
) -> Path:
    """Builds `nwrc/<config>` under `data_dir` and returns the folder that holds it.

    Nothing is written under that name until all of it is. Sizes are those of the first chip.

    Args:
      chips: A folder in the reference layout.
      data_dir: TFDS' folder; ~/tensorflow_datasets by default.
      config: "segmentation" or "classification".
      bands: Which bands to keep, counted from 0; the first three by default.
      overwrite: Whether to build again what is there already.
      **split_settings: `purity`, `split_by`, `num_labeled`, `num_test` of
        `tfds_nwrc.splits.assign`.

    Raises:
      InputError: A file is missing or malformed, or the settings don't fit the data.
    """
    rows = layout.read_metadata(chips)
    image = layout.read_image(chips / layout.IMAGES / rows["Image"][0], bands)
    bands = tuple(range(min(3, image.shape[-1]))) if bands is None else tuple(bands)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tfds_nwrc
    except ModuleNotFoundError:  # a checkout that is not installed
        sys.path.append(str(Path(__file__).parents[2] / "data"))
        import tfds_nwrc

    data_dir = (data_dir or Path("~/tensorflow_datasets")).expanduser()
    target = data_dir / tfds_nwrc.Nwrc.name / config / str(tfds_nwrc.Nwrc.VERSION)
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already; --overwrite builds it again")
    with _aside(target):
        counts = tfds_nwrc.build(
            chips,
            data_dir,
            config=config,
            size=image.shape[:2],
            elevation_size=layout.elevation_size(chips, rows),
            bands=bands,
            **split_settings,
        )
    splits = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"{target}: {splits} ({sum(counts.values())} of {len(rows)} chips)")
    return target


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[None]:
    """Moves a folder out of the way, and back if what replaces it fails."""
    if not folder.exists():
        yield
        return
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        yield
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


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
        default="random",
        help="keep whole tiles or blocks, and what overlaps them, out of training",
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
