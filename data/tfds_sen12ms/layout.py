"""The folders of SEN12MS.

    ROOT/ROIs1868_summer/s1_146/ROIs1868_summer_s1_146_p202.tif
    ROOT/ROIs1868_summer/s2_146/ROIs1868_summer_s2_146_p202.tif

and so for four seasons and 252 scenes. The land cover beside them, lc_146, isn't read.
"""

import re
from pathlib import Path

import pandas as pd

from elev_ssl_jax.errors import InputError
from tfds_sen12ms import patches

# The folder of each season, and the scenes that its authors hold out: 18,106 of 180,662 patches.
HELD_OUT = {
    "ROIs1158_spring": (63, 146, 97, 124, 15, 17),
    "ROIs1868_summer": (43, 131, 19, 104, 72, 15, 79),
    "ROIs1970_fall": (120, 39, 144, 35, 61, 47, 30, 141),
    "ROIs2017_winter": (64, 146, 32, 107, 135),
}


def is_there(folder: Path) -> bool:
    """Whether a folder has one of a season."""
    return any((folder / area).is_dir() for area in HELD_OUT)


def find(root: Path) -> pd.DataFrame:
    """The patches: `Id`, `scene`, `block` (the scene), `season`, `split`, and the paths `s1`, `s2`.

    Raises:
      InputError: There are none, or as `patches.find`.
    """
    tables = []
    for area, held_out in HELD_OUT.items():
        inside = patches.listed(root / area) if (root / area).is_dir() else []
        folders = {
            sensor: [p for p in inside if re.fullmatch(rf"{sensor}_\d+", p.name) and p.is_dir()]
            for sensor in patches.SENSORS
        }
        table = patches.find(root, area, folders)
        number = table["scene"].str.rsplit("_", n=1).str[-1].astype(int)
        table["split"] = number.isin(held_out).map({True: "holdout", False: "unlabeled"})
        table["season"], table["block"] = area.split("_")[1], table["scene"]
        tables += [table] if len(table) else []
    if not tables:
        example = root / "ROIs1868_summer" / "s1_146" / "ROIs1868_summer_s1_146_p202.tif"
        raise InputError(f"{root} has no patches; they are expected as {example}")
    return pd.concat(tables, ignore_index=True)
