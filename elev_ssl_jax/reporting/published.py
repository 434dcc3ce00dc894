"""The numbers of the papers, to stand beside ours where data and labels are theirs."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A table of a paper, per cent."""

    metrics: tuple[str, ...]  # as `config.experiment.metrics`
    labels: int
    splits: dict[str, int]  # chips in the data's splits: those are taken for the paper's
    crop_size: int  # as `config.augment.crop_size`
    methods: Mapping[str, tuple[str, ...]]  # a value for each metric
    per_class: str  # the metric of `classes`, as in `metrics.PER_CLASS`
    classes: Mapping[str, tuple[str, ...]]  # of each method, in the data's order


# Of arXiv 2304.06857, tables 1 and 2: one run a method.
_NWRC = {"unlabeled": 36_800, "labeled": 3_000, "test": 2_944}
_TABLE1 = {
    "random": ("87.73", "86.85"),
    "simclr": ("90.79", "90.31"),
    "elevation": ("87.64", "86.46"),
    "simclr_elev": ("93.50", "93.04"),
}
_TABLE2 = {
    "random": ("71.81", "56.72"),
    "glcnet": ("74.17", "59.47"),
    "elevation": ("73.29", "58.00"),
    "glcnet_elev": ("75.33", "61.01"),
}
# Of Scheibenreif et al. 2022, on DFC2020: mean and spread of several runs. Each class, then the
# average and the overall score.
_DFC2020 = {"train": 986, "test": 5_128}
_SINGLE = {
    "only_s1": "80±15 57±2 18±17 0±0 75±10 67±9 58±2 97±2 57±3 62±1",
    "only_s2": "43±26 78±12 45±29 11±6 59±9 62±5 61±18 96±6 57±6 62±5",
    "early_fusion": "60±12 66±37 62±8 1±1 66±10 73±6 66±18 99±0 62±4 66±2",
    "late_fusion": "62±23 76±14 51±18 1±2 64±11 71±5 75±9 100±1 62±4 65±3",
    "simclr_rgb": "11±12 69±13 45±14 3±3 66±22 26±23 77±14 99±1 49±3 58±4",
    "dual_simclr": "78±11 84±6 62±10 10±6 63±3 84±4 82±7 99±0 70±2 70±1",
    "mma": "68±17 89±5 53±13 8±9 71±7 80±6 81±7 100±0 69±2 69±1",
}
_MULTI = {
    "only_s1": "69±2 46±6 29±5 8±8 68±7 81±3 60±8 96±1 57±2 62±2",
    "only_s2": "37±20 51±14 43±20 23±18 76±2 79±6 63±10 94±2 58±3 63±2",
    "early_fusion": "48±10 53±7 45±13 13±11 69±5 84±4 71±4 94±1 60±3 62±3",
    "late_fusion": "56±6 45±11 33±9 18±24 64±3 69±16 53±15 96±1 54±7 61±5",
    "simclr_rgb": "3±4 49±11 24±16 10±8 63±24 40±36 49±15 73±6 39±10 49±6",
    "dual_simclr": "62±2 61±3 53±7 31±2 72±3 87±0 77±1 96±1 67±1 69±1",
    "mma": "58±5 57±5 35±8 10±6 77±3 89±1 73±5 97±0 62±2 66±1",
}


def _of_classes(table):
    rows = {method: tuple(row.split()) for method, row in table.items()}
    return {m: r[-2:] for m, r in rows.items()}, {m: r[:-2] for m, r in rows.items()}


_TABLES = {
    ("linear", "label"): Published(("accuracy", "macro_f1"), 80, _NWRC, 0, _TABLE1, "recall", {}),
    ("unet", "mask"): Published(("macro_f1", "mean_iou"), 80, _NWRC, 0, _TABLE2, "recall", {}),
    ("linear", "commonest"): Published(
        *(("mean_recall", "accuracy"), 986, _DFC2020, 128),
        *(_of_classes(_SINGLE)[0], "recall", _of_classes(_SINGLE)[1]),
    ),
    ("linear", "present"): Published(
        *(("macro_f1", "micro_f1"), 986, _DFC2020, 128),
        *(_of_classes(_MULTI)[0], "f1", _of_classes(_MULTI)[1]),
    ),
}


def beside(
    config: dict[str, Any], target: str, labels: int, splits: dict[str, int] | None
) -> Published | None:
    """The paper's table that an experiment's is to stand beside, if it has one.

    The data, labels and encoder are then the paper's (of methods that have their own, theirs).

    Args:
      config: The experiment's.
      target: What it learns, as `verdicts.target_of` says.
      labels: Labelled chips of each fine-tuning.
      splits: Chips in each split of its data, where that is known.
    """
    table = _TABLES.get((config["finetune"]["head"], target))
    if table is None:
        return None
    model = config["model"]
    ours = (labels, splits, config["augment"].get("crop_size", 0), model["encoder"], model["width"])
    theirs = (table.labels, table.splits, table.crop_size, "resnet18", 1.0)
    return table if ours == theirs else None
