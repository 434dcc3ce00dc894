"""What an experiment can compare: methods, each as fields of the configuration, and metrics."""

from collections.abc import Iterable
from typing import Any, NamedTuple

FROZEN = "_frozen"  # behind a method's name: its encoder stays as it is in fine-tuning
GIVEN = "from_"  # before the name of one of `experiment.encoders`: starts from that
ELSEWHERE = "-transfer"  # behind a task's name: on `data.transfer`
# Heads that are not trained step by step: they tell classes from frozen features.
PROBES = ("probe", "knn")
OF_CHIPS = ("linear", *PROBES)  # heads that tell something of a whole chip
REGRESSION = "regression"  # the head that tells a quantity rather than classes

# What an experiment can compare: of one class a chip or pixel, and of classes that are present.
METRICS_OF_CLASSES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mean_iou": "mIoU",
    "mean_recall": "average accuracy",
}
METRICS_OF_PRESENCE = {"accuracy": "accuracy", "macro_f1": "macro F1", "micro_f1": "micro F1"}
METRICS = METRICS_OF_CLASSES | METRICS_OF_PRESENCE


class Recipe(NamedTuple):
    """What makes a method that an experiment compares with others."""

    title: str
    fields: dict[str, Any]  # of the configuration, by dotted names; the rest is the experiment's
    pretrained: bool = True
    members: tuple[str, ...] = ()  # of an ensemble, whose probabilities are averaged
    also_sees: tuple[str, ...] = ()  # inputs beside those of the experiment
    heads: str = "all"  # that it goes with: "all", the "trained", or the "probes"


def _objective(alpha: float, lam: float = 1.0, features: str = "mean") -> dict[str, Any]:
    fields = {"alpha": alpha, "lam": lam, "global_features": features}
    return {f"objective.{name}": value for name, value in fields.items()}


_BOTH = {"data.inputs": ("s1", "s2")}
_LATE = {**_BOTH, "model.fusion": "late"}
_DUAL = {**_LATE, **_objective(0.0), "objective.positives": "sensors"}
_SWIN = {"model.encoder": "swin_t", "model.projection": (768, 128)}
_RESNET50 = {"model.encoder": "resnet50", "model.projection": (2048, 128)}


METHODS: dict[str, Recipe] = {
    "random": Recipe("random", {}, pretrained=False),
    # Of arXiv 2304.06857 (docs/methods.md).
    "simclr": Recipe("SimCLR", _objective(0.0)),
    "glcnet": Recipe("GLCNet", _objective(0.0, 0.5, "style")),
    "elevation": Recipe("Elevation-Map", _objective(1.0)),
    "simclr_elev": Recipe("SimCLR+Elevation", _objective(0.5)),
    "glcnet_elev": Recipe("GLCNet+Elevation", _objective(0.5, 0.5, "style")),
    # Controls: what of a gain is elevation's?
    "simclr_shuffled": Recipe(
        "SimCLR+Elevation, shuffled", {**_objective(0.5), "objective.target": "shuffled"}
    ),
    "simclr_slope": Recipe("SimCLR+Slope", {**_objective(0.5), "objective.target": "slope"}),
    "simclr_brightness": Recipe(
        "SimCLR+Brightness", {**_objective(0.5), "objective.target": "brightness"}
    ),
    "simclr_ndvi": Recipe("SimCLR+NDVI", {**_objective(0.5), "objective.target": "ndvi"}),
    "simclr_sees_elev": Recipe("SimCLR, sees elevation", _objective(0.0), also_sees=("elevation",)),
    # Baselines without any pre-training: mean and deviation of the bands, and the network of the
    # head, trained on the labels as one would if there were nothing else.
    "statistics": Recipe("band statistics", {}, pretrained=False, heads="probes"),
    "supervised": Recipe(
        "supervised",
        {
            "finetune.frozen_epochs": 0,
            "optimizer.learning_rate": 1e-3,
            "optimizer.schedule": "cosine",
        },
        pretrained=False,
        heads="trained",
    ),
    # Of two sensors, Sentinel-1 and Sentinel-2; the first four learn from the labels alone.
    "only_s1": Recipe("OnlySen-1", {"data.inputs": ("s1",)}, pretrained=False),
    "only_s2": Recipe("OnlySen-2", {"data.inputs": ("s2",)}, pretrained=False),
    "early_fusion": Recipe("EarlyFusion", {**_BOTH, "model.fusion": "early"}, pretrained=False),
    "late_fusion": Recipe("LateFusion", _LATE, pretrained=False),
    # Red, green and blue of Sentinel-2, as bright as they are, where the released code has numbers
    # that have run over.
    "simclr_rgb": Recipe(
        "SimCLR (RGB)",
        {
            **_objective(0.0),
            "data.inputs": ("s2",),
            "data.bands": (3, 2, 1),
            "data.value_range": (0.0, 3000.0),
            "data.scaling": "range",
        },
    ),
    "dual_simclr": Recipe("Dual-SimCLR", _DUAL),
    "dual_simclr_elev": Recipe("Dual-SimCLR+Elevation", {**_DUAL, "objective.alpha": 0.5}),
    "mma": Recipe(
        "MMA",
        {
            **_DUAL,
            "model.encoder": "vgg",
            "objective.global_features": "map",
            "objective.negatives": "across",
            "objective.temperature": 0.1,
        },
    ),
    # The same of other encoders.
    "late_swin": Recipe("Swin", {**_LATE, **_SWIN}, pretrained=False),
    "dual_swin": Recipe("Swin, Dual-SimCLR", {**_DUAL, **_SWIN}),
    "late_resnet50": Recipe("ResNet50", {**_LATE, **_RESNET50}, pretrained=False),
    "dual_resnet50": Recipe("ResNet50, Dual-SimCLR", {**_DUAL, **_RESNET50}),
    "plain_unet": Recipe(
        "UNet",
        {**_BOTH, "model.encoder": "plain", "finetune.head": "plain_unet"},
        pretrained=False,
        heads="trained",
    ),
    "ensemble": Recipe(
        "UNet + Swin, Dual-SimCLR",
        {},
        pretrained=False,
        members=("plain_unet", "dual_swin"),
        heads="trained",
    ),
}


def recipe(method: str) -> Recipe:
    """What makes a method, whether or not its encoder is to stay as it is."""
    name = method.removesuffix(FROZEN)
    if name.startswith(GIVEN):
        return Recipe(name.removeprefix(GIVEN), {}, pretrained=False)
    return METHODS[name]


def goes_with(method: str, head: str) -> bool:
    """Whether a method can be compared by a head, as `finetune.head`."""
    heads = "trained" if method.endswith(FROZEN) else recipe(method).heads
    return heads == "all" or (heads == "probes") == (head in PROBES)


def made_of(methods: Iterable[str]) -> list[Recipe]:
    """The recipes of an experiment's methods, each once; of an ensemble, its members'."""
    names = (method.removesuffix(FROZEN) for method in methods)
    return [recipe(m) for m in dict.fromkeys(m for n in names for m in recipe(n).members or (n,))]
