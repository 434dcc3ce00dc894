r"""Area of each class of a map, with what its run's test says of the map's errors.

python -m elev_ssl_jax.area --run RUN --map map.tif --out areas.csv
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elev_ssl_jax import command_line, files
from elev_ssl_jax.data.rasters import open_raster
from elev_ssl_jax.errors import InputError, reported
from elev_ssl_jax.finetuning import single
from elev_ssl_jax.inference import area
from elev_ssl_jax.inference.maps import check_classes
from elev_ssl_jax.inference.model import Model, load
from elev_ssl_jax.recipes import OF_CHIPS


def table(run: Path, paths: Sequence[Path]) -> tuple[pd.DataFrame, str]:
    """Hectares of each class, and how they are known.

    Args:
      run: Folder of the fine-tuning that made the map.
      paths: The map, or several, of shards or of scenes apart from each other.

    Raises:
      InputError: A map is another run's, or the run tells no classes, or has not been judged.
    """
    model = load(run)
    if model.num_classes is None or model.together:
        raise InputError(f"{run} doesn't tell one class a pixel or chip; areas are of classes")
    matrices, blocks = single.judged(run)
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"{', '.join(map(str, paths))}: a map is named twice")
    mapped = np.sum([_mapped(model, path) for path in paths], axis=0)
    if not mapped.sum():
        raise InputError(f"{', '.join(map(str, paths))}: there is no pixel of a class")
    alone = model.config.finetune.head in OF_CHIPS
    found = area.estimate(matrices, mapped, alone=alone)
    hectares = mapped.sum() / 1e4
    rows = {
        "class": model.classes,
        "mapped (ha)": hectares * found.mapped,
        "estimated (ha)": hectares * found.estimated,
        "low (ha)": hectares * found.low,
        "high (ha)": hectares * found.high,
    }
    how = (
        f"95 % intervals over {blocks} blocks of test ground"
        if blocks >= area.LEAST_BLOCKS
        else "95 % intervals as if test chips were drawn one by one"
        if alone
        else f"no intervals: they need {area.LEAST_BLOCKS} blocks of test ground; there "
        + ("is no telling them apart" if not blocks else f"are {blocks}")
    )
    untold = [
        name
        for name, told, there in zip(model.classes, matrices.sum(axis=(0, 1)), mapped, strict=True)
        if there and not told
    ]
    if untold:
        how += f"; {', '.join(untold)}: never told in the test, and taken as mapped"
    return pd.DataFrame(rows), how


def _mapped(model: Model, path: Path) -> NDArray[np.float64]:
    """Square metres of each class of a map."""
    with ExitStack() as stack:
        source = open_raster(path, stack)
        check_classes(path, source)
        whose = source.tags()["run"]
        if whose != model.run.resolve().name:
            raise InputError(
                f"{path} is a map of the run {whose}; name that, or map it by {model.run}"
            )
        of_other = source.tags().get("checksum", model.checksum) != model.checksum
        if of_other:
            raise InputError(
                f"{path} was made by another training that was called {whose}, too; map it again "
                f"by {model.run}"
            )
        then, without = source.tags().get("step", str(model.step)), source.tags().get("without")
        if then != str(model.step) or without:
            raise InputError(
                f"{path} was made "
                + (f"without {without}" if without else f"after {then} steps of {model.run}")
                + ", and the run's test is of another model; map it again"
            )
        return area.of_map(path, source, len(model.classes))


def main() -> None:
    """The command."""
    parser = command_line.parser("area", __doc__)
    parser.add_argument(
        "--run", type=command_line.run, required=True, help="the fine-tuning that made the map"
    )
    parser.add_argument(
        "--map",
        type=command_line.path,
        nargs="+",
        required=True,
        help="the map, as predict writes it, or several, of shards or of scenes that don't overlap",
    )
    parser.add_argument("--out", type=command_line.path, help="CSV to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    args = parser.parse_args()
    with reported():
        if args.out:
            files.check_outputs([args.out], inputs=args.map, overwrite=args.overwrite)
        found, how = table(args.run, args.map)
        print(found.round(1).to_string(index=False).replace("NaN", "  -"))
        print(
            "estimated from the map and the confusion matrix of the run's test (Olofsson et al. "
            f"2014); {how}. It holds as far as the test chips stand for the ground that is mapped."
        )
        if args.out:
            files.write_text(args.out, found.to_csv(index=False, float_format="%.10g"))
            print(f"{args.out} written")


if __name__ == "__main__":
    main()
