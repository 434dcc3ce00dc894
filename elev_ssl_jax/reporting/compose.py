"""Tables and figures of an experiment, from its results alone."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elev_ssl_jax import files, metrics, pictures
from elev_ssl_jax.config import class_names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.recipes import METRICS
from elev_ssl_jax.reporting import documents, evidence, pretrained, published, verdicts
from elev_ssl_jax.runtime import run_folder

_CELL = ("method", "labels", "repetition", "draw", "seed")
_AGAIN = "delete it, and run the experiment again"


def write(run: Path) -> str:
    """Writes the report of an experiment's folder; returns its main table and where it is.

    Raises:
      InputError: The folder holds no finished fine-tuning, or what it holds can't be read.
    """
    config, results, splits = read(run)
    titles, target = verdicts.metrics_of(config), verdicts.target_of(config)
    scalars = [name for name in METRICS if name in results]
    files.write_text(run / "results.csv", results[[*_CELL, *scalars]].to_csv(index=False))
    methods = [m for m in config["experiment"]["methods"] if m in set(results["method"])]
    results = results[results["method"].isin(methods)]
    if results.empty:
        raise InputError(f"{run} holds no finished fine-tuning of config.experiment.methods")

    title = f"{config['data']['name']}: {len(results)} fine-tunings"
    blocks: list[tuple[str, Any]] = [("title", title), ("text", verdicts.setting(config, results))]
    main_table, main_verdict = pd.DataFrame(), ""
    for labels in sorted(results["labels"].unique().tolist()):
        some = results[results["labels"] == labels]
        paper = published.beside(config, target, labels, splits)
        table = _summary(some, methods, titles, paper)
        scores = table_of(run, some, methods, titles, presence=target == "present")
        differences = evidence.compare(scores)
        verdict = verdicts.verdict(some, methods, titles, differences)
        if main_table.empty:
            main_table, main_verdict = table, verdict
        blocks += [("heading", f"{labels} labels"), ("table", table), ("text", verdict)]
        if config["experiment"]["label_draws"] and labels == _labelled_chips(config):
            blocks.append(("text", "These are all labelled chips there are, in every draw."))
        if any(d.repetitions > 1 for d in differences):
            path = run / f"differences-{labels}.png"
            pictures.draw_forest(
                path, verdicts.forest(differences, methods), "points, with 95 % intervals"
            )
            blocks.append(("image", path))
            blocks.append(("table", verdicts.differences_table(differences, methods, titles)))
            blocks.append(("text", verdicts.reading(differences)))
    if results["labels"].nunique() > 1:
        pictures.draw_curves(
            run / "curves.png", _curves(results, methods, titles), "labelled chips"
        )
        blocks += [("heading", "Label efficiency"), ("image", run / "curves.png")]
    largest = results[results["labels"] == results["labels"].max()]
    pooled = {m: _pooled(largest[largest["method"] == m]) for m in set(largest["method"])}
    pooled = {m: pooled[m] for m in methods if m in pooled}
    classes = class_names(config, len(next(iter(pooled.values()))))
    blocks += [("heading", f"Classes, at {results['labels'].max()} labels, all cells together")]
    if target != "present":
        named = {verdicts.name_of(m): matrix for m, matrix in pooled.items()}
        pictures.draw_confusion(run / "confusion.png", named, classes)
        blocks.append(("image", run / "confusion.png"))
    paper = published.beside(config, target, int(results["labels"].max()), splits)
    blocks.append(("table", _per_class(pooled, classes, paper)))
    if _draw_panel(run, methods, largest, classes):
        blocks += [("heading", "Examples from the test chips"), ("image", run / "panel.png")]
    blocks += pretrained.blocks(run, methods)
    page = documents.write(run, blocks)
    return f"{main_table.to_string(index=False)}\n{main_verdict}\nreport: {page}"


def read(run: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, int] | None]:
    """Configuration, a row for each cell, and the chips in each split, if that is known."""
    paths = sorted((run / "cells").glob("*.json"))
    if not paths:
        raise InputError(f"{run} holds no finished fine-tuning; is it an experiment's --workdir?")
    config = run_folder.read_config(run)
    results = pd.DataFrame([_read_cell(path) for path in paths])
    splits = run / "splits.json"
    counts = files.read_json(splits, _AGAIN, or_null=True) if splits.exists() else {}
    known = [data for data in results.get("data", ()) if isinstance(data, dict)]
    # Cells of the random encoder alone may not know what others were pre-trained on.
    if (pd.DataFrame(known).nunique() > 1).any():
        raise InputError(
            f"{run} holds results on different data; run the experiment in another --workdir"
        )
    results["file"] = [path.stem for path in paths]
    return config, results.sort_values([*_CELL], ignore_index=True), counts or None


def _read_cell(path):
    """What a fine-tuning came to; the text of those before it was numbered is refused."""
    its = files.read_json(path, _AGAIN)
    if its.get("draw") is None:
        raise InputError(
            f"{path} is of an earlier version; run the experiment in another --workdir"
        )
    with files.told(path, _AGAIN):
        matrix = np.array(its["confusion_matrix"], float)
        fine = matrix.ndim in (2, 3) and matrix.shape[-1] == matrix.shape[-2]
        fine &= all(type(its[name]) is int for name in _CELL[1:])
        fine &= isinstance(its[_CELL[0]], str)
        fine &= all(isinstance(text, str) for text in its.get("data", {}).values())
        fine &= all(isinstance(its[m], int | float) for m in METRICS if m in its)
        if not fine:
            raise ValueError("its fields are not what they should be")
    return its


def _labelled_chips(config) -> int | None:
    """How many there are to draw from, if that is known."""
    known = config.get("fingerprint", {}).get("train")
    return known and run_folder.count_of(known)


def table_of(run, some, methods, titles, *, presence=False, repetitions=None, seed=0):
    """Scores in per cent, with the test ground's luck where its blocks are known.

    Args:
      run: The experiment's folder.
      some: Its results with one number of labels.
      methods: The rows' names, M of them.
      titles: Of the Q metrics, by name.
      presence: Whether fine-tunings tell which classes are present.
      repetitions: All R of them; None is those of `some`.
      seed: Of the draws of test blocks, see `evidence.resample`.
    """
    if repetitions is None:
        repetitions = sorted(some["repetition"].unique())
    rows = _rows(some, methods, repetitions)
    values = 100 * some[list(titles)].to_numpy(float)
    scores = np.where(rows[..., None] < 0, math.nan, values[rows])
    chips = int(np.sum(some["confusion_matrix"].iloc[0]))
    counts, ground = _block_counts(run, some, rows), None
    if counts is not None:
        ground = evidence.resample(counts, tuple(titles), presence=presence, seed=seed)
        if ground.scores is not None:
            ground = ground._replace(scores=100 * ground.scores)
    return evidence.Table(scores, ground, 100 / max(chips, 1))


def _rows(some, methods, repetitions):
    """Which row of `some` each fine-tuning is, [M, R, C]; -1 where it is missing."""
    places: dict[int, dict[tuple[int, int], int]] = {}
    for r in repetitions:
        mine = some[some["repetition"] == r]
        keys = sorted(set(zip(mine["draw"], mine["seed"], strict=True)))
        places[r] = {key: i for i, key in enumerate(keys)}
    rows = np.full((len(methods), len(repetitions), max(map(len, places.values()))), -1)
    for row, cell in enumerate(zip(*(some[name] for name in _CELL), strict=True)):
        method, _, r, draw, seed = cell
        rows[methods.index(method), repetitions.index(r), places[r][draw, seed]] = row
    return rows


def _block_counts(run, some, rows):
    """Confusion matrices of the test blocks [M, R, C, G, ...]; None if they are not known."""
    known: dict[int, np.ndarray] = {}
    names: list[str] = []
    for row, file in enumerate(some["file"]):
        path = run / "cells" / f"{file}.npz"
        if not path.exists():
            return None
        again = f"delete it and {path.with_suffix('.json').name}, and run the experiment again"
        known[row], its = files.read_arrays(path, again, "matrices", "blocks")
        blocks = its.tolist()
        if names and names != blocks:
            raise InputError(f"{path} is of other test blocks than the rest; use another --workdir")
        names = blocks
    missing = np.zeros_like(known[0])
    counts = np.stack([known.get(row, missing) for row in rows.ravel()])
    return counts.reshape(*rows.shape, *missing.shape)


def _summary(some, methods, titles, paper):
    rows = []
    for method in methods:
        mine = some[some["method"] == method]
        if mine.empty:
            continue
        row: dict[str, Any] = {
            "method": verdicts.name_of(method),
            "pre-trainings": mine["repetition"].nunique(),
            "fine-tunings": len(mine),
        }
        for name, title in titles.items():
            interval = evidence.interval(100 * verdicts.repetition_means(mine, name))
            row[title] = documents.plus_minus(*interval, 2)
            if paper is not None and name in paper.metrics:
                values = dict(zip(paper.metrics, paper.methods.get(method, ()), strict=False))
                row[f"{title}, paper"] = values.get(name, "")
        rows.append(row)
    return pd.DataFrame(rows)


def _per_class(pooled, classes, paper):
    rows = []
    for method, matrix in pooled.items():
        summary = metrics.summary(matrix)
        for i in range(len(matrix)):
            values = (summary[key][i] for key in metrics.PER_CLASS)
            cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
            titles = ("precision", "recall", "F1", "IoU")
            row = {"method": verdicts.name_of(method), "class": classes[i]}
            row |= dict(zip(titles, cells, strict=True))
            if paper is not None and paper.classes:
                title = titles[metrics.PER_CLASS.index(paper.per_class)]
                row[f"{title}, paper"] = paper.classes.get(method, [""] * len(matrix))[i]
            rows.append(row)
    return pd.DataFrame(rows)


def _pooled(mine):
    """The cells' counts together."""
    return np.sum([np.asarray(m, np.int64) for m in mine["confusion_matrix"]], axis=0)


def _curves(results, methods, titles):
    """Of each metric, each method's mean and interval by the number of labels (figures 4 and 5)."""
    curves: dict[str, dict[str, Any]] = {}
    for name, title in titles.items():
        curves[f"{title} (%)"] = {
            verdicts.name_of(method): {
                labels: evidence.interval(100 * verdicts.repetition_means(some, name))
                for labels, some in results[results["method"] == method].groupby("labels")
            }
            for method in methods
        }
    return curves


def _draw_panel(run, methods, some, names) -> bool:
    """Image, truth and every method's prediction for some test chips (figure 3)."""
    classes = {}
    for method in methods:
        stems = some[some["method"] == method]["file"]
        paths = [run / "cells" / f"{stem}.npy" for stem in stems]
        for path in [path for path in paths if path.exists()][:1]:
            again = f"delete it and {path.with_suffix('.json').name}, and run the experiment again"
            (classes[verdicts.name_of(method)],) = files.read_arrays(path, again)
    if classes:
        path, again = run / "panel.npz", "delete it, and run the experiment again"
        images, targets = files.read_arrays(path, again, "images", "targets")
        with files.told(path, again):
            pictures.draw_classes(run / "panel.png", images, targets, classes, names)
    return bool(classes)
