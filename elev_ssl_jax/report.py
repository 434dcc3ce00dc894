"""Tables and figures of an experiment, from its results alone.

python -m elev_ssl_jax.report RUN

Writes `report.md`, `report.html` (one file, pictures included), `results.csv` and the pictures.
"""

import argparse
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elev_ssl_jax import documents, evidence, files, metrics, pictures
from elev_ssl_jax.errors import InputError, reported

NAMES = {
    "random": "random",
    "simclr": "SimCLR",
    "glcnet": "GLCNet",
    "elevation": "Elevation-Map",
    "simclr_elev": "SimCLR+Elevation",
    "glcnet_elev": "GLCNet+Elevation",
}
METRICS = {
    "linear": {"accuracy": "accuracy", "macro_f1": "macro F1"},
    "unet": {"macro_f1": "F1", "mean_iou": "mIoU"},
}
# Tables 1 and 2 of arXiv 2304.06857: 80 labels, on the NWRC data, one run a method; per cent. The
# data are taken for those if their splits have these sizes.
PAPER_LABELS, PAPER_SPLITS = 80, {"unlabeled": 36_800, "labeled": 3_000, "test": 2_944}
PAPER = {
    "linear": {
        "random": (87.73, 86.85),
        "simclr": (90.79, 90.31),
        "elevation": (87.64, 86.46),
        "simclr_elev": (93.5, 93.04),
    },
    "unet": {
        "random": (71.81, 56.72),
        "glcnet": (74.17, 59.47),
        "elevation": (73.29, 58.0),
        "glcnet_elev": (75.33, 61.01),
    },
}
_CELL = ("method", "labels", "repetition", "draw", "seed")
_SCALARS = ("accuracy", "macro_f1", "mean_iou")


def write(run: Path) -> str:
    """Writes the report of an experiment's folder; returns its main table and where it is.

    Raises:
      InputError: The folder holds no finished fine-tuning, or what it holds can't be read.
    """
    config, results, splits = _read(run)
    head = config["finetune"]["head"]
    files.write_text(run / "results.csv", results[[*_CELL, *_SCALARS]].to_csv(index=False))
    methods = [m for m in config["experiment"]["methods"] if m in set(results["method"])]
    results = results[results["method"].isin(methods)]
    if results.empty:
        raise InputError(f"{run} holds no finished fine-tuning of config.experiment.methods")

    title = f"{config['data']['name']}: {len(results)} fine-tunings"
    blocks: list[tuple[str, Any]] = [("title", title), ("text", _setting(config, results))]
    main_table, main_verdict = pd.DataFrame(), ""
    for labels in sorted(results["labels"].unique().tolist()):
        some = results[results["labels"] == labels]
        beside_paper = labels == PAPER_LABELS and splits == PAPER_SPLITS
        table = _summary(some, methods, head, with_paper=beside_paper)
        differences = _compare(run, some, methods, head)
        verdict = _verdict(some, methods, head, differences)
        if main_table.empty:
            main_table, main_verdict = table, verdict
        blocks += [("heading", f"{labels} labels"), ("table", table), ("text", verdict)]
        if config["experiment"]["label_draws"] and splits and labels >= splits.get("labeled", 0):
            blocks.append(("text", "These are all labelled chips there are, in every draw."))
        if any(d.repetitions > 1 for d in differences):
            blocks.append(("table", _differences(differences, methods, head)))
            blocks.append(("text", _reading(differences)))
    if results["labels"].nunique() > 1:
        pictures.draw_curves(run / "curves.png", _curves(results, methods, head), "labelled chips")
        blocks += [("heading", "Label efficiency"), ("image", run / "curves.png")]
    largest = results[results["labels"] == results["labels"].max()]
    pooled = {m: _pooled(largest[largest["method"] == m]) for m in set(largest["method"])}
    pooled = {NAMES[m]: pooled[m] for m in methods if m in pooled}
    pictures.draw_confusion(run / "confusion.png", pooled)
    blocks += [("heading", f"Classes, at {results['labels'].max()} labels, all cells together")]
    blocks += [("image", run / "confusion.png"), ("table", _per_class(pooled))]
    if _draw_panel(run, methods, largest):
        blocks += [("heading", "Examples from the test chips"), ("image", run / "panel.png")]
    files.write_text(run / "report.md", documents.markdown(blocks))
    files.write_text(run / "report.html", documents.page(title, blocks))
    return f"{main_table.to_string(index=False)}\n{main_verdict}\nreport: {run / 'report.html'}"


def _read(run: Path) -> tuple[dict[str, Any], pd.DataFrame, dict[str, int] | None]:
    """Configuration, a row for each cell, and the chips in each split, if that is known."""
    paths = sorted((run / "cells").glob("*.json"))
    if not paths:
        raise InputError(f"{run} holds no finished fine-tuning; is it an experiment's --workdir?")
    try:
        config = json.loads((run / "config.json").read_text())
        results = pd.DataFrame([json.loads(path.read_text()) for path in paths])
        splits = run / "splits.json"
        counts = json.loads(splits.read_text()) if splits.exists() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{run} can't be read ({error}); run the experiment again") from error
    if not {*_CELL} <= set(results) or results[[*_CELL]].isna().any(axis=None):
        raise InputError(
            f"{run} holds results of an earlier version; run the experiment in another --workdir"
        )
    known = [data for data in results.get("data", ()) if isinstance(data, dict)]
    # Cells of the random encoder alone may not know what others were pre-trained on.
    if (pd.DataFrame(known).nunique() > 1).any():
        raise InputError(
            f"{run} holds results on different data; run the experiment in another --workdir"
        )
    results["file"] = [path.stem for path in paths]
    return config, results.sort_values([*_CELL], ignore_index=True), counts


def _setting(config, results):
    """What was done, what is repeated and what isn't."""
    settings, pretrain = config["experiment"], config["experiment"]["pretrain"]
    matrix = np.asarray(results["confusion_matrix"].iloc[0])
    pixels = "pixels" if config["finetune"]["head"] == "unet" else "chips"
    repetitions = results["repetition"].nunique()
    most = results.groupby(["method", "labels", "repetition", "draw"])["seed"].nunique().max()
    draws = settings["label_draws"]
    chosen = f"on {_count(draws, 'random choice')} of the labelled chips for each" * bool(draws)
    sentences = [
        f"A method is pre-trained {pretrain['epochs']} epochs (batch {pretrain['batch_size']}, "
        f"{pretrain['split']}), then fine-tuned on labelled chips "
        f"({config['finetune']['frozen_epochs']} epochs with a frozen encoder, {config['epochs']} "
        f"of everything) and judged by {matrix.sum():,} labelled {pixels} of "
        f"{config['data']['eval_split']}. Encoder: {config['model']['encoder']}, width "
        f"{config['model']['width']:g}. Numbers are per cent.",
        f"Repeated: {_count(repetitions, 'pre-training')} of each method (for random, initial "
        f"encoders){', ' + chosen if chosen else ''}, and for each of those "
        f"{_count(most, 'fine-tuning')} (the new layers' initial weights, order and flips of the "
        "chips)."
        + ("" if draws else " Not repeated: the labelled chips, which are always the first."),
    ]
    if repetitions > 1:
        sentences.append(
            "A method's interval holds its mean with 95 % confidence (Student's t) over "
            "pre-trainings, each the mean of its fine-tunings; the test chips are the same for "
            "all, and their luck is not in it."
        )
    if draws:
        sentences.append(
            "Labelled chips are drawn from all of `labeled`, so that pre-training may have seen "
            "images (never labels) of some."
        )
    return " ".join(sentences)


def _count(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _scores(some, methods, head):
    """Scores in per cent [M, R, C, Q], and the rows of `some` that they are of [M, R, C], or -1."""
    repetitions = sorted(some["repetition"].unique())
    places: dict[int, dict[tuple[int, int], int]] = {}
    for r in repetitions:
        mine = some[some["repetition"] == r]
        keys = sorted(set(zip(mine["draw"], mine["seed"], strict=True)))
        places[r] = {key: i for i, key in enumerate(keys)}
    rows = np.full((len(methods), len(repetitions), max(map(len, places.values()))), -1)
    for row, cell in enumerate(zip(*(some[name] for name in _CELL), strict=True)):
        method, _, r, draw, seed = cell
        rows[methods.index(method), repetitions.index(r), places[r][draw, seed]] = row
    values = 100 * some[list(METRICS[head])].to_numpy(float)
    return np.where(rows[..., None] < 0, math.nan, values[rows]), rows


def _compare(run, some, methods, head):
    """All differences, in per cent, with the test ground's luck where its blocks are known."""
    scores, rows = _scores(some, methods, head)
    chips = int(np.sum(some["confusion_matrix"].iloc[0]))
    counts, ground = _block_counts(run, some, rows), None
    if counts is not None:
        ground = evidence.resample(counts, tuple(METRICS[head]))
        if ground.scores is not None:
            ground = ground._replace(scores=100 * ground.scores)
    return evidence.compare(scores, ground, resolution=100 / max(chips, 1))


def _block_counts(run, some, rows):
    """Confusion matrices of the test blocks [M, R, C, G, K, K]; None if they are not known."""
    known: dict[int, np.ndarray] = {}
    names: list[str] = []
    for row, file in enumerate(some["file"]):
        path = run / "cells" / f"{file}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path) as cell:
                known[row], blocks = cell["matrices"], cell["blocks"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} can't be read; delete it and {path.with_suffix('.json').name}, and run "
                "the experiment again"
            ) from error
        if names and names != blocks:
            raise InputError(f"{path} is of other test blocks than the rest; use another --workdir")
        names = blocks
    missing = np.zeros_like(known[0])
    counts = np.stack([known.get(row, missing) for row in rows.ravel()])
    return counts.reshape(*rows.shape, *missing.shape)


def _summary(some, methods, head, *, with_paper):
    rows = []
    for method in methods:
        mine = some[some["method"] == method]
        if mine.empty:
            continue
        row: dict[str, Any] = {
            "method": NAMES[method],
            "pre-trainings": mine["repetition"].nunique(),
            "fine-tunings": len(mine),
        }
        for i, (name, title) in enumerate(METRICS[head].items()):
            row[title] = _plus_minus(*evidence.interval(100 * _repetition_means(mine, name)))
            if with_paper:
                paper = PAPER[head].get(method)
                row[f"{title}, paper"] = "" if paper is None else f"{paper[i]:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _repetition_means(mine, name):
    return mine.groupby("repetition")[name].mean().to_numpy()


def _plus_minus(mean, half):
    return f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def _differences(differences, methods, head):
    titles = list(METRICS[head].values())
    with_blocks = any(d.blocks for d in differences)
    rows = []
    for d in differences:
        row: dict[str, Any] = {
            "difference": f"{NAMES[methods[d.one]]} - {NAMES[methods[d.other]]}",
            "in": titles[d.metric],
            "points": f"{d.mean:+.2f}",
            "over pre-trainings": _between(d.mean - d.half, d.mean + d.half),
        }
        if with_blocks:
            row["over test blocks"] = _between(*d.blocks) if d.blocks else ""
        row["p, adjusted"] = "" if math.isnan(d.p) else _p_value(d.p)
        row["noise?"] = _judged(d)
        rows.append(row)
    return pd.DataFrame(rows)


def _between(low, high):
    return "" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def _p_value(p):
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _judged(difference):
    judged = difference.more_than_noise
    if judged is not None:
        alone = " of pre-training" * (difference.ground is None)
        return f"more than noise{alone}" if judged else "could be noise"
    if math.isnan(difference.p):
        return "not known: one pre-training"
    return f"not known: the test lies in {_count(difference.ground.blocks, 'block')}"


def _reading(differences):
    """How to read the table of differences."""
    tested = [d for d in differences if not math.isnan(d.p)]
    fewest = min(d.repetitions for d in tested)
    ground = tested[0].ground
    within = ground is not None and ground.scores is not None
    of_ground = ", so that the luck of the test ground is in none of the intervals and p-values"
    if within:
        luck = (
            ", and hold both kinds of luck. The "
            f"{ground.blocks} blocks of test chips are drawn again and again, with replacement "
            "(expanded percentiles). More than noise: p below 0.05, and the interval over test "
            "blocks without zero."
        )
    elif ground is not None:
        luck = (
            f". The test chips lie in {_count(ground.blocks, 'block')} only{of_ground}: whether a "
            "difference with p below 0.05 would be there on other ground is not known."
        )
    else:
        luck = (
            f". Which chips of the test lie together isn't known{of_ground}. More than noise of "
            "pre-training: p below 0.05."
        )
    return (
        "Differences are taken within a pre-training's repetition, over the fine-tunings that both "
        "methods have. Intervals hold 95 % and are of one comparison by itself; p-values are "
        f"adjusted (Holm) for all {len(tested)}{luck} With "
        f"{_count(fewest, 'pre-training')} of each method that takes a difference of at "
        f"least {evidence.detectable(fewest, len(tested)):.1f} of its standard deviations between "
        "pre-trainings; more of them (experiment.pretrain_seeds) show smaller ones."
    )


def _verdict(some, methods, head, differences):
    """Which method is first, by how much, and whether that is noise, in words."""
    name, title = next(iter(METRICS[head].items()))
    means = {
        m: _repetition_means(some[some["method"] == m], name).mean()
        for m in methods
        if (some["method"] == m).any()
    }
    if len(means) < 2:
        return "Only one method is finished."
    first, second = sorted(means, key=lambda m: -means[m])[:2]
    says = f"{NAMES[first]} has the highest {title}"
    if not any(d.repetitions > 1 for d in differences):
        return f"{says}; one pre-training a method says nothing about noise."
    found = {(methods[d.one], methods[d.other]): d for d in differences if d.metric == 0}
    sentences = []
    for rival in dict.fromkeys((second, "random")):
        pair, sign = found.get((first, rival)), 1
        if pair is None:
            pair, sign = found.get((rival, first)), -1
        if rival == first or pair is None:
            continue
        judged = "of which one pre-training in common says nothing"
        if not math.isnan(pair.p):
            verb = "" if pair.more_than_noise is False else "is "
            judged = f"which {verb}{_judged(pair)} (p = {_p_value(pair.p)})".replace("= <", "<")
        sentences.append(f"{sign * pair.mean + 0.0:+.2f} points against {NAMES[rival]}, {judged}")
    return f"{says}: " + "; ".join(sentences) + "." if sentences else f"{says}."


def _per_class(pooled):
    rows = []
    for name, matrix in pooled.items():
        summary = metrics.summary(matrix)
        for i in range(len(matrix)):
            values = (summary[key][i] for key in metrics.PER_CLASS)
            cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
            titles = ("precision", "recall", "F1", "IoU")
            rows.append({"method": name, "class": i, **dict(zip(titles, cells, strict=True))})
    return pd.DataFrame(rows)


def _pooled(mine):
    """The cells' counts together."""
    return np.sum([np.asarray(m, np.int64) for m in mine["confusion_matrix"]], axis=0)


def _curves(results, methods, head):
    """Of each metric, each method's mean and interval by the number of labels (figures 4 and 5)."""
    curves: dict[str, dict[str, Any]] = {}
    for name, title in METRICS[head].items():
        curves[f"{title} (%)"] = {
            NAMES[method]: {
                labels: evidence.interval(100 * _repetition_means(some, name))
                for labels, some in results[results["method"] == method].groupby("labels")
            }
            for method in methods
        }
    return curves


def _draw_panel(run, methods, some) -> bool:
    """Image, truth and every method's prediction for some test chips (figure 3)."""
    classes = {}
    try:
        for method in methods:
            stems = some[some["method"] == method]["file"]
            paths = [run / "cells" / f"{stem}.npy" for stem in stems]
            for path in [path for path in paths if path.exists()][:1]:
                classes[NAMES[method]] = np.load(path)
        if classes:
            panel = np.load(run / "panel.npz")
            pictures.draw_classes(run / "panel.png", panel["images"], panel["targets"], classes)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the examples in {run} can't be read ({error}); run the experiment's command again"
        ) from error
    return bool(classes)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="an experiment's --workdir")
    with reported():
        print(write(parser.parse_args().run))


if __name__ == "__main__":
    main()
