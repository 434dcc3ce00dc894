"""Pictures of a run: what the model is shown, and what it predicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from elev_ssl_jax import files


def draw_views(
    path: Path,
    images: np.ndarray,
    views: dict[str, np.ndarray],
    elevation: np.ndarray | None = None,
    patches: tuple[np.ndarray, float] | None = None,
) -> None:
    """A row for each chip: the image, its views, and the elevation that goes with the last.

    Args:
      path: The PNG to write.
      images: float [B, H, W, 3] in 0..1.
      views: float [B, H, W, 3] in 0..1, by title.
      elevation: [B, h, w] in metres, NaN where missing; None leaves it out.
      patches: Centres [B, 2, P, (row, column)] of the patches of the first two views, and their
        side, in pixels.
    """
    columns = ["image", *views] + ["elevation (m)"] * (elevation is not None)
    figure, axes = _grid(len(images), columns, gap=0.1)
    for i, row in enumerate(axes):
        for axis, pictured in zip(row, (images, *views.values()), strict=False):
            axis.imshow(pictured[i])
        if patches is not None:
            centres, side = patches
            for view, number in np.ndindex(centres.shape[1:3]):
                top, left = centres[i, view, number] - (side + 1) / 2  # pixel 0 is around 0
                frame = Rectangle((left, top), side, side, fill=False, edgecolor=f"C{number}")
                row[1 + view].add_patch(frame)
        if elevation is not None:
            _add_scale(figure, row[-1].imshow(elevation[i], cmap="terrain"))
    _save(figure, path)


def draw_field(
    path: Path,
    images: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    true_relief: np.ndarray,
    predicted_relief: np.ndarray,
    *,
    quantity: str = "elevation",
    unit: str = "m",
) -> None:
    """A row for each chip: image, true and predicted quantity, true and predicted relief.

    The two of a kind have one scale in a row, that of the relief around zero.

    Args:
      path: The PNG to write.
      images: float [B, H, W, 3] in 0..1.
      true: [B, h, w] in `unit`, NaN where missing.
      predicted: [B, h, w] in `unit`.
      true_relief: [B, h, w] in `unit`, without the chip's mean; NaN where missing.
      predicted_relief: The same of the prediction.
      quantity: What it is.
      unit: Its unit, or "".
    """
    titles = [f"true {quantity}", "predicted", "true relief", "predicted relief"]
    columns = ["image", *(with_unit(title, unit) for title in titles)]
    figure, axes = _grid(len(images), columns, gap=0.65)
    for i, row in enumerate(axes):
        row[0].imshow(images[i])
        fields = [field[i] for field in (true, predicted, true_relief, predicted_relief)]
        low, high = np.nanmin(fields[:2]), np.nanmax(fields[:2])
        largest = np.nanmax(np.abs(fields[2:]))
        scale = {"vmin": low, "vmax": high, "cmap": _colors_of(quantity)}
        around_zero = {"vmin": -largest, "vmax": largest, "cmap": "RdBu_r"}
        for first, kwargs in ((0, scale), (2, around_zero)):
            row[1 + first].imshow(fields[first], **kwargs)
            _add_scale(figure, row[2 + first].imshow(fields[first + 1], **kwargs))
    _save(figure, path)


def draw_classes(
    path: Path,
    images: np.ndarray,
    true: np.ndarray,
    predicted: dict[str, np.ndarray],
    names: Sequence[str],
) -> None:
    """Chips, each with its image, its true classes, and those that each model predicts.

    Args:
      path: The PNG to write.
      images: float [B, H, W, 3] in 0..1.
      true: uint8, a class for each pixel [B, H, W], 255 where unlabelled; or for each chip [B], or
        whether each class is there [B, K], which are told in words, in red where models err.
      predicted: The same by model.
      names: Of the classes.
    """
    if np.ndim(true) < 3:
        _draw_words(path, images, true, predicted, names)
        return
    columns = ["image", "true", *predicted]
    figure, axes = _grid(len(images), columns, gap=0.1)
    figure.set_layout_engine("constrained")  # has room for a legend
    scale = _class_scale(len(names))
    for i, row in enumerate(axes):
        row[0].imshow(images[i])
        for axis, classes in zip(row[1:], (true, *predicted.values()), strict=True):
            shown = np.ma.masked_equal(classes[i], 255)
            axis.imshow(shown, interpolation="nearest", **scale)
    _add_legend(figure, names)
    _save(figure, path)


def _draw_words(path, images, true, predicted, names):
    """Chips side by side, and below each what is said of it."""

    def words(classes):
        there = map(int, np.flatnonzero(classes) if np.ndim(classes) else [classes])
        return " + ".join(names[i] if i < len(names) else "unlabelled" for i in there) or "none"

    lines = 1 + len(predicted)
    figure, axes = _subplots(
        1, len(images), figsize=(2.6 * len(images), 2.8 + 0.2 * lines), squeeze=False
    )
    figure.subplots_adjust(0.01, 0.2 * lines / (2.8 + 0.2 * lines), 0.99, 0.97, 0.06)
    for i, axis in enumerate(axes[0]):
        axis.imshow(images[i])
        axis.set_axis_off()
        right = words(true[i])
        said = {"true": right, **{model: words(classes[i]) for model, classes in predicted.items()}}
        for line, (model, text) in enumerate(said.items()):
            axis.annotate(
                f"{model}: {text}",
                (0, 0),
                (0, -6 - 13 * line),
                xycoords="axes fraction",
                textcoords="offset points",
                va="top",
                fontsize=8,
                fontweight="bold" if line == 0 else "normal",
                color="black" if text == right else "tab:red",
            )
    _save(figure, path)


def draw_curves(
    path: Path, curves: dict[str, dict[str, dict[int, tuple[float, float]]]], across: str
) -> None:
    """A panel for each metric, a line for each method, on a logarithmic axis.

    Args:
      path: The PNG to write.
      curves: By metric and method: by place on the axis, the mean and half its interval, or NaN.
      across: What the axis is.
    """
    figure, axes = _subplots(1, len(curves), figsize=(5 * len(curves), 4), layout="tight")
    for axis, (title, methods) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        for name, points in methods.items():
            means, halves = zip(*points.values(), strict=True)
            axis.errorbar(list(points), means, np.nan_to_num(halves), label=name, capsize=3)
        axis.set(xscale="log", xlabel=across, ylabel=title)
        ticks = sorted({place for points in methods.values() for place in points})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    np.atleast_1d(axes)[0].legend()
    _save(figure, path)


class ForestRow(NamedTuple):
    """A difference in `draw_forest`."""

    title: str
    mean: float
    ends: tuple[float, float]  # of its interval; NaN for none
    each: Sequence[float]  # repetition's own
    stands_out: bool | None  # from noise, if that is known


def draw_forest(path: Path, rows: Sequence[ForestRow], across: str) -> None:
    """Differences one below the other, beside zero.

    Args:
      path: The PNG to write.
      rows: From the top.
      across: What the axis is.
    """
    figure, axis = _subplots(1, 1, figsize=(8, 1 + 0.34 * len(rows)), layout="constrained")
    for i, row in enumerate(rows):
        color = {True: "tab:blue", False: "0.55", None: "0.75"}[row.stands_out]
        axis.plot(row.ends, (i, i), color=color, linewidth=2)
        axis.plot(row.mean, i, "D", color=color, markersize=8)
        axis.plot(row.each, [i] * len(row.each), "o", color="black", alpha=0.6, markersize=3)
    axis.axvline(0, color="0.2", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [row.title for row in rows])
    axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=across)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    _save(figure, path)


def draw_reliability(path: Path, calibration: dict[str, Any]) -> None:
    """Accuracy by confidence, beside the diagonal where they are alike, and how often it occurs.

    Args:
      path: The PNG to write.
      calibration: From `calibration.Reliability.summary`.
    """
    counts = np.array(calibration["count"])
    some = np.flatnonzero(counts)
    confidence, accuracy = (
        np.array([calibration[name][i] for i in some]) for name in ("confidence", "accuracy")
    )
    figure, (above, below) = _subplots(
        2, 1, figsize=(4, 5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot((0, 1), (0, 1), color="0.7", linewidth=1)
    above.plot(confidence, accuracy, "o-", color="tab:blue")
    above.set(ylabel="accuracy", ylim=(0, 1), title=f"calibration error {calibration['error']:.3f}")
    width = 1 / len(counts)
    below.bar(width * (np.arange(len(counts)) + 0.5), counts / max(counts.sum(), 1), 0.9 * width)
    below.set(xlabel="confidence", ylabel="share", xlim=(0, 1))
    _save(figure, path)


def with_unit(name: str, unit: str) -> str:
    """As a title has it."""
    return f"{name} ({unit})" if unit else name


def _colors_of(quantity):
    return "terrain" if quantity == "elevation" else "viridis"


def draw_confusion(path: Path, matrices: dict[str, np.ndarray], names: Sequence[str]) -> None:
    """Confusion matrices [K, K] by title, each row in per cent of the true class, by its name."""
    side = 0.6 * max(4, len(next(iter(matrices.values())))) + 0.2
    figure, axes = _subplots(
        1, len(matrices), figsize=(side * len(matrices), side + 0.2), squeeze=False, layout="tight"
    )
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, vmin=0, vmax=100, cmap="Blues")
        for i, j in np.ndindex(share.shape):
            color = "white" if share[i, j] > 50 else "black"
            axis.text(j, i, f"{share[i, j]:.1f}", ha="center", va="center", color=color)
        ticks = range(len(share))
        axis.set(title=title, xlabel="predicted", ylabel="true")
        turned = {"rotation": 45, "ha": "right"} if len(names) > 2 else {}
        axis.set_xticks(ticks, names, **turned)
        axis.set_yticks(ticks, names)
    _save(figure, path)


def draw_map(
    path: Path,
    image: np.ndarray,
    shown: np.ma.MaskedArray,
    classes: Sequence[str] = (),
    quantity: tuple[str, str] | None = None,
) -> None:
    """A scene beside its map, with a legend.

    Args:
      path: The PNG to write.
      image: float [H, W, 3] in 0..1.
      shown: [H, W], masked where unknown: one of `classes`, or a quantity.
      classes: Their names.
      quantity: Its name and unit.
    """
    height, width = image.shape[:2]
    figure, axes = _subplots(
        1, 2, figsize=(14, 14 * height / (2 * width) + 0.8), layout="constrained"
    )
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(image)
    if quantity is not None:
        told = axes[1].imshow(shown, cmap=_colors_of(quantity[0]))
        figure.colorbar(told, ax=axes[1], label=with_unit(*quantity))
    else:
        axes[1].imshow(shown, interpolation="nearest", **_class_scale(len(classes)))
        _add_legend(figure, classes)
    _save(figure, path)


def _class_scale(count):
    """How `imshow` is to colour classes."""
    colors = ListedColormap(class_colors(count))
    return {"cmap": colors, "vmin": -0.5, "vmax": count - 0.5}


def _add_legend(figure, names):
    """The colours of the first twenty classes, below the figure."""
    colors = class_colors(len(names))
    handles = [Patch(color=c, label=n) for c, n in zip(colors, names, strict=True)][:20]
    columns = max(1, int(figure.get_figwidth() / (0.8 + 0.08 * max(map(len, names)))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def class_colors(count: int) -> list[tuple[float, float, float]]:
    """Red, green and blue in 0..1 for each class; of two the first, the background, is grey."""
    colors = matplotlib.colormaps["tab10" if count <= 10 else "turbo"]
    if count <= 2:
        return [(0.9, 0.9, 0.88), colors(2)[:3]][:count]
    several = colors(range(count) if count <= 10 else np.linspace(0, 1, count))
    return [(r, g, b) for r, g, b, _ in several]


def displayable(
    images: np.ndarray, rgb: tuple[int, ...], valid: np.ndarray | None = None
) -> np.ndarray:
    """Three bands of [..., C], stretched together to the 1st and 99th percentiles of the valid."""
    bands = list(rgb) if rgb else [min(i, images.shape[-1] - 1) for i in range(3)]
    shown = images[..., bands]
    low, high = np.percentile(shown if valid is None else shown[valid], (1, 99))
    return np.clip((shown - low) / max(high - low, 1e-6), 0, 1)


def _subplots(rows, columns, *, figsize, layout=None, **more):
    """Not pyplot's, whose windows, and whether there are any, are the user's own business."""
    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **more)


def _grid(rows, columns, *, gap):
    """Square panels with titles, `gap` inches between them, and room for a scale beside the last.

    Their places are given: to find some for so many, matplotlib draws them all twice.
    """
    side, scale, above = 2.1, 0.6, 0.3
    width = len(columns) * (side + gap) + scale
    height = rows * (side + 0.1) + above
    figure, axes = _subplots(
        *(rows, len(columns)),
        figsize=(width, height),
        squeeze=False,
        gridspec_kw={
            "left": 0.1 / width,
            "right": 1 - (scale + gap - 0.1) / width,
            "bottom": 0.1 / height,
            "top": 1 - above / height,
            "wspace": gap / side,
            "hspace": 0.1 / side,
        },
    )
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _add_scale(figure, shown):
    """The scale of a panel, beside it."""
    bar = figure.colorbar(shown, cax=shown.axes.inset_axes((1.03, 0, 0.05, 1)))
    bar.ax.tick_params(labelsize=8)


def _save(figure, path):
    with files.new_file(path) as partial:
        figure.savefig(partial, dpi=90)
