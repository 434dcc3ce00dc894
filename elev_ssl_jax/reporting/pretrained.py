"""What an experiment's pre-trainings have learned of elevation, level and relief side by side."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elev_ssl_jax import files
from elev_ssl_jax.recipes import FROZEN
from elev_ssl_jax.reporting import documents, evidence, verdicts

_LEVEL = "elevation_level_rmse_m"
_COLUMNS = {  # a score, its title, decimal places, and what one has that learned nothing
    _LEVEL: ("level, RMSE (m)", 1, "elevation_level_rmse_of_train_mean_m"),
    "elevation_relief_rmse_m": ("relief, RMSE (m)", 1, "elevation_relief_rmse_of_none_m"),
    "elevation_relief_correlation": ("relief, correlation", 2, ""),
}
_HOW = (
    "Level is a chip's mean height, relief the shape of its ground; on held-out chips, with 95 % "
    "intervals over pre-trainings. The last line is of the training chips' mean height and no "
    "relief."
)


def blocks(run: Path, methods: list[str]) -> list[documents.Block]:
    """Scores and a picture of the pre-trainings in a folder; none if none predicts elevation.

    Raises:
      InputError: A pre-training's results can't be read.
    """
    rows: list[dict[str, Any]] = []
    pictured, nothing = [], {}
    for method in dict.fromkeys(method.removesuffix(FROZEN) for method in methods):
        folders = sorted((run / "pretrain").glob(f"{method}-[0-9]*"))
        found = {folder: _read(folder / "results.json") for folder in folders}
        found = {folder: scores for folder, scores in found.items() if _LEVEL in scores}
        if not found:
            continue
        row = {"method": verdicts.name_of(method), "pre-trainings": str(len(found))}
        for name, (title, digits, to_beat) in _COLUMNS.items():
            values = np.array([scores[name] for scores in found.values()])
            row[title] = documents.plus_minus(*evidence.interval(values), digits)
            if to_beat:
                nothing[title] = f"{next(iter(found.values()))[to_beat]:.{digits}f}"
        rows.append(row)
        pictured += [path for path in [min(found) / "elevation.png"] if path.exists()]
    if not rows:
        return []
    table = pd.DataFrame([*rows, {"method": "nothing learned", **nothing}]).fillna("")
    return [
        ("heading", "What pre-training learned of elevation"),
        ("table", table),
        ("text", _HOW),
        *(("image", path) for path in pictured[:1]),
    ]


def _read(path):
    again = "delete it, and run the experiment again"
    return files.read_json(path, again) if path.exists() else {}
