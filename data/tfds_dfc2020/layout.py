"""The folders of DFC2020, in both of their forms, and its classes.

    ROOT/ROIs0000_validation/s1_0/ROIs0000_validation_s1_0_p649.tif    and so s2_0 and dfc_0
    ROOT/ROIs0000_test/s1_0/ROIs0000_test_s1_0_p2014.tif

or, as they were released at first, s1_validation for s1_0, in ROIs0000_validation or right in ROOT.
The coarse land cover beside them, lc, isn't read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tfds_sen12ms import patches

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import UNLABELLED

# What is learned from is what its authors validated with: 986 patches, and the test has 5,128.
SPLITS = {"validation": "train", "test": "test"}
KINDS = (*patches.SENSORS, "dfc")
# The values of the files; those without a class are savanna (3), and snow and ice (8).
_VALUES = {
    "Forest": 1,
    "Shrubland": 2,
    "Grassland": 4,
    "Wetlands": 5,
    "Croplands": 6,
    "Urban": 7,
    "Barren": 9,
    "Water": 10,
}
CLASSES = tuple(_VALUES)
_CLASS_OF = np.full(256, UNLABELLED, np.uint8)
_CLASS_OF[list(_VALUES.values())] = np.arange(len(CLASSES))


def is_there(folder: Path) -> bool:
    """Whether a folder has some of its patches, in either form."""
    return any(
        path.is_dir()
        for part in SPLITS
        for path in (folder / f"ROIs0000_{part}", *(folder / f"{kind}_{part}" for kind in KINDS))
    )


def find(root: Path) -> pd.DataFrame:
    """The patches: `Id`, `scene`, `block`, `split`, and the paths `s1`, `s2` and `dfc`.

    Raises:
      InputError: One of the two splits is missing, or as `patches.find`.
    """
    tables = []
    for part, split in SPLITS.items():
        area = f"ROIs0000_{part}"
        inside = root / area
        folders = {
            kind: [
                folder
                for folder in (
                    inside / f"{kind}_0",
                    inside / f"{kind}_{part}",
                    root / f"{kind}_{part}",
                )
                if folder.is_dir()
            ]
            for kind in KINDS
        }
        table = patches.find(root, area, folders)
        if table.empty:
            raise InputError(
                f"{root} has no patches of {area}, in {area}/s1_0 or s1_{part}: DFC2020 trains on "
                "ROIs0000_validation and tests on ROIs0000_test, and both are needed"
            )
        table["split"], table["block"] = split, table["scene"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def look(row: Mapping[str, Any]) -> patches.Seen:
    """Looks at the files of a patch.

    Raises:
      InputError: As `patches.look` and `read_mask`.
    """
    read_mask(row["dfc"])
    return patches.look(row)


def read(row: Mapping[str, Any]) -> dict[str, Any]:
    """Both sensors as `patches.read`, and `mask`, `label` and `labels` as `Dfc2020` has them."""
    mask = read_mask(row["dfc"])
    return {**patches.read(row), "mask": mask, "label": label_of(mask), "labels": labels_of(mask)}


def read_mask(path: str) -> np.ndarray:
    """Classes uint8 [256, 256], counted as in `CLASSES`; 255 where there is none.

    Raises:
      InputError: The file is missing or damaged, or has another size or other values.
    """
    with patches.open_patch(path, 1, patches.FLOATS + patches.INTEGERS) as source:
        values = source.read(1)
    unknown = np.setdiff1d(values, (*range(11), UNLABELLED))
    if unknown.size:
        raise InputError(f"{path} has the value {unknown[0]}; dfc has 0 to 10, or 255")
    return _CLASS_OF[values.astype(np.uint8)]


def label_of(mask: np.ndarray) -> int:
    """The commonest class, the first of several; -1 if having none is commoner than any."""
    value = int(np.bincount(mask.ravel()).argmax())
    return -1 if value == UNLABELLED else value


def labels_of(mask: np.ndarray) -> np.ndarray:
    """For each class whether a tenth of all pixels have it, uint8 [K]."""
    counts = np.bincount(mask.ravel(), minlength=len(CLASSES))[: len(CLASSES)]
    return (10 * counts >= mask.size).astype(np.uint8)
