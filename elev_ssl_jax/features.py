r"""Frozen features of labelled chips in one file, so that others can judge an encoder.

python -m elev_ssl_jax.features RUN --out features.npz
python -m elev_ssl_jax.features RUN --out features.npz --dir OTHER --name chips/classification \
    --train "labeled[:400]" --val "labeled[400:]" --test test

NumPy's .npz with, for each of train, val and test: X_train float32 [N, F], the mean over the
encoder's last map; y_train int64 [N], each chip's class, its label or its mask's commonest (chips
without one are left out); block_train str [N], the block of ground that it lies in, where the data
say. `classes` has their names. Nothing of it is scaled or drawn. Those who would rather run the
encoder themselves take `python -m elev_ssl_jax.convert --to torchvision`.
"""

import types
from pathlib import Path
from typing import Any

import numpy as np

from elev_ssl_jax import command_line, files
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.inference.model import Model, load
from elev_ssl_jax.pretraining import measures, scores

PARTS = ("train", "val", "test")


def of_split(model: Model, split: Any) -> dict[str, np.ndarray]:
    """Features X, classes y and, where they are known, blocks of a split's labelled chips.

    Raises:
      InputError: The chips have no classes, or don't suit the model.
    """
    kinds = [name for name in scores.LABELS if name in split.features]
    if not kinds:
        raise InputError(f"{split.name} has neither labels nor masks")
    ground = [name for name in scores.GROUND if name in split.features][:1]
    arrays = split.arrays(*model.given, kinds[0], *ground)
    labels = measures.chip_labels(arrays)
    known = labels >= 0
    if not known.any():
        raise InputError(f"no chip of {split.name} is labelled")
    found = {
        "X": model.features({name: arrays[name][known] for name in model.given}),
        "y": labels[known],
    }
    if ground:
        found["block"] = arrays[ground[0]][known].astype(str)
    return found


def write(
    run: Path,
    out: Path,
    splits: dict[str, str],
    *,
    name: str = "",
    folder: str = "",
    overwrite: bool = False,
) -> str:
    """Writes the file; what is in it, in words.

    Args:
      run: The run's folder.
      out: The file.
      splits: Of some of `PARTS`; those left out are the run's own.
      name: As `data.name`; "" is the run's.
      folder: As `data.dir`; "" is the run's.
      overwrite: Whether to replace a file that is there.

    Raises:
      InputError: The run or the data can't be read, or don't suit one another, or `out` is there.
    """
    from elev_ssl_jax.data import source

    files.check_outputs([out], overwrite=overwrite)
    model = load(run)
    own = model.config.data
    data = types.SimpleNamespace(name=name or own.name, dir=folder or own.dir)
    theirs = dict(zip(PARTS, (own.probe_split, own.validation_split, own.eval_split), strict=True))
    arrays: dict[str, Any] = {}
    said = []
    for part in PARTS:
        if not (wanted := splits.get(part) or theirs[part]):
            continue
        opened = source.open_split(data, wanted, exact=True)
        found = of_split(model, opened)
        arrays |= {f"{key}_{part}": array for key, array in found.items()}
        arrays["classes"] = np.array(opened.classes, str)
        said.append(f"{len(found['y'])} chips of {wanted} for {part}")
    width = arrays[f"X_{PARTS[-1]}"].shape[1]
    try:
        with files.new_file(out) as partial, partial.open("wb") as sink:
            np.savez_compressed(sink, **arrays)
    except OSError as error:
        raise InputError(f"--out={out} can't be written: {error.strerror}") from error
    return f"{out}: {width} features each of {', '.join(said)}"


def main() -> None:
    """The command."""
    parser = command_line.parser("features", __doc__)
    parser.add_argument(
        "run", type=command_line.run, help="a pre-training, or what convert --to run makes"
    )
    parser.add_argument("--out", type=command_line.path, required=True, help="the file, .npz")
    parser.add_argument("--name", default="", help="as config.data.name; the run's own")
    parser.add_argument("--dir", default="", help="as config.data.dir; the run's own")
    for part, what in zip(PARTS, ("learn from", "choose by", "judge by"), strict=True):
        parser.add_argument(f"--{part}", default="", help=f"split to {what}; the run's own")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    args = parser.parse_args()
    with reported():
        splits = {part: getattr(args, part) for part in PARTS}
        print(
            write(
                args.run,
                args.out,
                splits,
                name=args.name,
                folder=args.dir,
                overwrite=args.overwrite,
            )
        )


if __name__ == "__main__":
    main()
