"""Tables and figures of an experiment, from its results alone.

python -m elev_ssl_jax.report RUN

Writes `report.md`, `report.html` (one file, pictures included), `results.csv` and the pictures.
"""

import argparse
import base64
import html
import itertools
import json
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from scipy import stats

from elev_ssl_jax import metrics, pictures
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
# Tables 1 and 2 of arXiv 2304.06857: 80 labels, on the NWRC data, one run a method; per cent.
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
_SCALARS = ("accuracy", "macro_f1", "mean_iou")


def write(run: Path) -> str:
    """Writes the report of an experiment's folder; returns its main table and where it is.

    Raises:
      InputError: The folder holds no finished fine-tuning.
    """
    config, results = _read(run)
    head = config["finetune"]["head"]
    results[["method", "labels", "seed", *_SCALARS]].to_csv(run / "results.csv", index=False)
    methods = [m for m in config["experiment"]["methods"] if m in set(results["method"])]

    title = f"{config['data']['name']}: {len(results)} fine-tunings"
    blocks: list[tuple[str, Any]] = [("title", title), ("text", _setting(config, results))]
    main_table = pd.DataFrame()
    for labels, some in results.groupby("labels"):
        table = _summary(some, methods, head, with_paper=labels == 80)
        main_table = table if main_table.empty else main_table
        blocks += [("heading", f"{labels} labels"), ("table", table)]
        blocks.append(("text", _verdict(some, methods, head)))
        differences = _differences(some, methods, head)
        if not differences.empty:
            blocks.append(("table", differences))
    if results["labels"].nunique() > 1:
        _draw_curves(run / "curves.png", results, methods, head)
        blocks += [("heading", "Label efficiency"), ("image", run / "curves.png")]
    largest = results[results["labels"] == results["labels"].max()]
    _draw_confusion(run / "confusion.png", largest, methods)
    blocks += [("heading", f"Classes, at {results['labels'].max()} labels, all seeds together")]
    blocks += [("image", run / "confusion.png"), ("table", _per_class(largest, methods))]
    if _draw_panel(run, methods, config):
        blocks += [("heading", "Examples from the test chips"), ("image", run / "panel.png")]
    (run / "report.md").write_text(_markdown(blocks))
    (run / "report.html").write_text(_html(title, blocks))
    return f"{main_table.to_string(index=False)}\n{blocks[4][1]}\nreport: {run / 'report.html'}"


def _read(run: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    files = sorted((run / "cells").glob("*.json"))
    if not files:
        raise InputError(f"{run} holds no finished fine-tuning; is it an experiment's --workdir?")
    try:
        config = json.loads((run / "config.json").read_text())
        results = pd.DataFrame([json.loads(file.read_text()) for file in files])
    except (OSError, ValueError) as error:
        raise InputError(f"{run} can't be read ({error}); run the experiment again") from error
    return config, results.sort_values(["labels", "method", "seed"], ignore_index=True)


def _setting(config, results):
    pretrain = config["experiment"]["pretrain"]
    matrix = np.asarray(results["confusion_matrix"].iloc[0])
    pixels = "pixels" if config["finetune"]["head"] == "unet" else "chips"
    return (
        f"Each method is pre-trained once ({pretrain['epochs']} epochs, batch "
        f"{pretrain['batch_size']}, {pretrain['split']}), then fine-tuned on the first labelled "
        f"chips ({config['finetune']['frozen_epochs']} epochs with a frozen encoder, "
        f"{config['epochs']} of everything) and judged by {matrix.sum():,} labelled {pixels} of "
        f"{config['data']['eval_split']}. Encoder: {config['model']['encoder']}, width "
        f"{config['model']['width']:g}. Numbers are per cent. Intervals hold the mean over seeds "
        "with 95 % confidence (Student's t); seeds differ in the new layers' initial weights, the "
        "order and the flips of the chips, and, for random, in the encoder. They share the "
        "labelled chips and the pre-training, whose own luck is not in the intervals."
    )


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval; NaN for a single value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return mean, float(half)


def _summary(some, methods, head, *, with_paper):
    rows = []
    for method in methods:
        mine = some[some["method"] == method]
        row: dict[str, Any] = {"method": NAMES[method], "seeds": len(mine)}
        for i, (name, title) in enumerate(METRICS[head].items()):
            row[title] = _plus_minus(*interval(100 * mine[name].to_numpy()))
            if with_paper:
                paper = PAPER[head].get(method)
                row[f"{title}, paper"] = "" if paper is None else f"{paper[i]:.2f}"
        rows.append(row)
    return pd.DataFrame([row for row in rows if row["seeds"]])


def _plus_minus(mean, half):
    return f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def _paired(some, one, other, metric):
    """Differences between two methods, seed by seed, in per cent."""
    table = some.pivot(index="seed", columns="method", values=metric)
    if one not in table or other not in table:
        return np.array([])
    return 100 * (table[one] - table[other]).dropna().to_numpy()


def _differences(some, methods, head):
    rows = []
    for other, one in itertools.combinations(methods, 2):
        row = {"difference": f"{NAMES[one]} - {NAMES[other]}"}
        for name, title in METRICS[head].items():
            values = _paired(some, one, other, name)
            if len(values) < 2:
                return pd.DataFrame()
            mean, half = interval(values)
            zero = abs(mean) <= half
            row[title] = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"
            row[f"{title}: noise?"] = "contains zero" if zero else "more than noise"
        rows.append(row)
    return pd.DataFrame(rows)


def _verdict(some, methods, head):
    """Which method is first, by how much, and whether that is noise, in words."""
    name, title = next(iter(METRICS[head].items()))
    means = some.groupby("method")[name].mean().reindex(methods).dropna()
    if len(means) < 2:
        return "Only one method is finished."
    first, second = means.sort_values(ascending=False).index[:2]
    values = _paired(some, first, second, name)
    if len(values) < 2:
        return f"{NAMES[first]} has the highest {title}; one seed says nothing about noise."
    sentences = []
    for rival in dict.fromkeys((second, "random")):
        if rival == first or rival not in means:
            continue
        mean, half = interval(_paired(some, first, rival, name))
        noise = "could be noise: the interval of the difference contains zero"
        judged = noise if abs(mean) <= half else "is more than noise"
        sentences.append(
            f"{mean:.2f} points above {NAMES[rival]} ({mean - half:+.2f} to {mean + half:+.2f}), "
            f"which {judged}"
        )
    return f"{NAMES[first]} has the highest {title}: " + "; ".join(sentences) + "."


def _per_class(some, methods):
    rows = []
    for method in methods:
        mine = some[some["method"] == method]
        if mine.empty:
            continue
        summary = metrics.summary(np.sum(mine["confusion_matrix"].tolist(), axis=0))
        for i in range(len(summary["f1"])):
            values = (summary[name][i] for name in metrics.PER_CLASS)
            cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
            titles = ("precision", "recall", "F1", "IoU")
            rows.append(
                {"method": NAMES[method], "class": i, **dict(zip(titles, cells, strict=True))}
            )
    return pd.DataFrame(rows)


def _draw_curves(path, results, methods, head):
    """Each metric against the number of labels (figures 4 and 5)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="tight")
    for axis, (name, title) in zip(axes, METRICS[head].items(), strict=True):
        for method in methods:
            groups = results[results["method"] == method].groupby("labels")[name]
            means, halves = zip(*(interval(100 * v.to_numpy()) for _, v in groups), strict=True)
            axis.errorbar(
                list(groups.groups), means, np.nan_to_num(halves), label=NAMES[method], capsize=3
            )
        axis.set(xscale="log", xlabel="labelled chips", ylabel=f"{title} (%)")
        ticks = sorted(results["labels"].unique())
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[0].legend()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_confusion(path, some, methods):
    """Confusion matrices over all seeds, each row in per cent of the true class."""
    methods = [m for m in methods if (some["method"] == m).any()]
    figure, axes = plt.subplots(
        1, len(methods), figsize=(2.6 * len(methods), 2.8), squeeze=False, layout="tight"
    )
    for axis, method in zip(axes[0], methods, strict=True):
        matrix = np.sum(some[some["method"] == method]["confusion_matrix"].tolist(), axis=0)
        share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, vmin=0, vmax=100, cmap="Blues")
        for i, j in np.ndindex(share.shape):
            color = "white" if share[i, j] > 50 else "black"
            axis.text(j, i, f"{share[i, j]:.1f}", ha="center", va="center", color=color)
        ticks = range(len(share))
        axis.set(title=NAMES[method], xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _draw_panel(run, methods, config) -> bool:
    """Image, truth and every method's prediction for some test chips (figure 3)."""
    labels, seed = max(config["experiment"]["labels"]), config["seed"]
    files = {m: run / "cells" / f"{m}-{labels}-{seed}.npy" for m in methods}
    classes = {NAMES[m]: np.load(file) for m, file in files.items() if file.exists()}
    if classes:
        panel = np.load(run / "panel.npz")
        pictures.draw_classes(run / "panel.png", panel["images"], panel["targets"], classes)
    return bool(classes)


def _markdown(blocks):
    parts = []
    for kind, content in blocks:
        if kind == "table":
            rows = [content.columns, ["---"] * content.shape[1], *content.to_numpy()]
            parts.append("\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows))
        elif kind == "image":
            parts.append(f"![{content.stem}]({content.name})")
        else:
            parts.append({"title": "# ", "heading": "## ", "text": ""}[kind] + content)
    return "\n\n".join(parts) + "\n"


def _html(title, blocks):
    parts = []
    for kind, content in blocks:
        if kind == "table":
            parts.append(content.to_html(index=False, border=0))
        elif kind == "image":
            data = base64.b64encode(content.read_bytes()).decode()
            parts.append(f'<img alt="{content.stem}" src="data:image/png;base64,{data}">')
        else:
            tag = {"title": "h1", "heading": "h2", "text": "p"}[kind]
            parts.append(f"<{tag}>{html.escape(content)}</{tag}>")
    style = (
        "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse;margin:1em 0}"
        "td,th{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left}img{max-width:100%}"
    )
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    return f"<!doctype html>{head}\n" + "\n".join(parts) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="an experiment's --workdir")
    with reported():
        print(write(parser.parse_args().run))


if __name__ == "__main__":
    main()
