"""The papers' settings beside `default`: fine-tuning, comparisons, two sensors; and their demos."""

import ml_collections

from elev_ssl_jax.config.defaults import default
from elev_ssl_jax.recipes import FROZEN


def fine_tuning(head: str) -> ml_collections.ConfigDict:
    """The settings of sections 5.1.2 (`head` "linear") and 5.2.2 ("unet") of arXiv 2304.06857.

    Those of other heads are the same.
    """
    config = default()
    config.task = "finetune"
    config.data.name = "nwrc/segmentation" if head == "unet" else "nwrc/classification"
    config.data.split = "labeled[:80]"
    config.finetune.head = head
    # 20 epochs of the new layers, then 80 of everything, batches of 8, Adam.
    config.finetune.frozen_epochs = 20
    config.finetune.frozen_learning_rate = 1e-3
    config.epochs = 80
    config.batch_size = 8
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-5
    config.optimizer.schedule = "constant"
    config.optimizer.weight_decay = 0.0
    return config


def comparison(head: str) -> ml_collections.ConfigDict:
    """The settings of an experiment that compares methods by many of `fine_tuning(head)`."""
    config = fine_tuning(head)
    config.task = "experiment"
    config.data.split = default().data.split  # an experiment takes `labeled`, by its label counts
    return config


def two_sensors() -> ml_collections.ConfigDict:
    """The pre-training of Dual-SimCLR on Sentinel-1 and Sentinel-2 (Scheibenreif et al. 2022)."""
    config = default()
    _see_two_sensors(config)
    config.data.name, config.data.split, config.data.eval_split = "sen12ms", "unlabeled", "holdout"
    config.data.probe_split = ""  # there are no labels
    config.model.fusion = "late"
    config.objective.positives = "sensors"
    config.objective.alpha = 0.0
    config.objective.temperature = 0.07
    # Squares of 128 pixels, and nothing else: the other sensor is the other view. 100 epochs of
    # batch 200, Adam at 3e-5 (the released schedule hardly leaves it).
    config.augment.crop_size = 128
    config.epochs, config.batch_size = 100, 200
    config.optimizer.update(name="adam", learning_rate=3e-5, schedule="constant")
    return config


def two_sensor_fine_tuning(target: str) -> ml_collections.ConfigDict:
    """A fine-tuning on DFC2020, as Scheibenreif et al. 2022 have it.

    `target` is as `finetune.target`: the "commonest" class of a square, those that are "present",
    or the "mask".
    """
    config = default()
    config.task = "finetune"
    _see_two_sensors(config)
    config.data.name, config.data.split, config.data.eval_split = "dfc2020", "train", "test"
    config.model.fusion = "late"
    config.augment.crop_size = 128
    config.augment.finetune.flip = config.augment.finetune.transpose = 0.0
    config.finetune.head = "unet" if target == "mask" else "linear"
    config.finetune.target = target
    config.finetune.oversample = True
    # 200 epochs of all layers, a tenth of the rate from the hundredth on, Adam with L2.
    config.finetune.frozen_epochs = 0
    config.epochs, config.batch_size = 200, 32
    config.optimizer.update(name="adam", learning_rate=3e-6, schedule="constant")
    config.optimizer.weight_decay, config.optimizer.drop_epoch = 1e-3, 100
    return config


def fusion(target: str, methods: tuple[str, ...]) -> ml_collections.ConfigDict:
    """An experiment that compares `methods` by many of `two_sensor_fine_tuning(target)`."""
    config = two_sensor_fine_tuning(target)
    config.task = "experiment"
    config.data.split, config.data.probe_split = default().data.split, ""
    config.model.fusion = "early"  # unless a method says otherwise
    config.objective.temperature = 0.07
    if any(method.endswith(FROZEN) for method in methods):  # for as many epochs
        config.finetune.frozen_learning_rate = 3e-6
    settings = config.experiment
    settings.methods = methods
    settings.split, settings.labels, settings.stratified = "train", (1.0,), True
    settings.seeds = 5
    settings.metrics = {
        "commonest": ("mean_recall", "accuracy"),
        "present": ("macro_f1", "micro_f1"),
        "mask": ("mean_recall", "mean_iou"),
    }[target]
    pretrain = two_sensors()
    settings.pretrain.name, settings.pretrain.split = pretrain.data.name, pretrain.data.split
    settings.pretrain.eval_split = pretrain.data.eval_split
    settings.pretrain.epochs, settings.pretrain.batch_size = pretrain.epochs, pretrain.batch_size
    settings.pretrain.optimizer.update(pretrain.optimizer)
    return config


def _see_two_sensors(config: ml_collections.ConfigDict) -> None:
    config.data.inputs = ("s1", "s2")
    config.data.value_range = (("s1", -25.0, 0.0), ("s2", 0.0, 10000.0))
    config.data.scaling = "crop_max"
    config.data.rgb = (5, 4, 3)  # of VV, VH and the thirteen bands


def with_variant(
    config: ml_collections.ConfigDict, variant: str, *others: str
) -> ml_collections.ConfigDict:
    """Applies what follows the colon in `--config=FILE:VARIANT`: nothing, or `demo`.

    Args:
      config: Without a variant; changed in place.
      variant: Its name.
      *others: Those that the file itself knows.

    Raises:
      ValueError: There is no such variant.
    """
    if variant == "demo":
        # Small synthetic scenes and a quarter of the channels: minutes on a laptop.
        config.data.synthetic.chips = 1500
        config.data.synthetic.size = 64
        config.model.width = 0.25
        if "s2" in config.data.inputs:
            _two_sensor_demo(config)
        if config.task == "experiment":
            config.experiment.pretrain_seeds = 1  # so that the report draws no verdict
            config.experiment.seeds = 3
        pretraining = {"pretrain": config, "experiment": config.experiment.pretrain}
        if config.task in pretraining:
            its = pretraining[config.task]
            its.batch_size, its.epochs = 64, 25
            if its.optimizer.name == "adamw" and "s2" not in config.data.inputs:
                its.optimizer.learning_rate = 3e-3
            if config.objective.alpha > 0 and "image" in config.data.inputs:
                # Not the paper's: in so few steps its settings teach how high a chip lies, and
                # nothing of the shape of its ground (docs/methods.md, "Relief").
                config.loss.relief_weight = 20.0
                config.model.elevation_padding = "edge"
    elif variant:
        known = ", ".join((":demo", *others))
        raise ValueError(f"there is no variant {variant!r}; those that there are: {known}")
    return config


def _two_sensor_demo(config: ml_collections.ConfigDict) -> None:
    """What a demo of two sensors has otherwise: made-up scenes, fewer and longer steps."""
    config.data.name, config.data.eval_split = "chips/segmentation", "test"
    # Brightness tells these small scenes' classes, so that it is not divided away.
    config.data.scaling = "range"
    config.augment.crop_size = 48
    if config.task == "pretrain":
        config.data.split, config.data.probe_split = "unlabeled", "labeled"
        _hasten(config.optimizer)
        return
    config.optimizer.update(learning_rate=1e-3, drop_epoch=15)
    config.epochs = 20
    if config.task == "finetune":
        config.data.split = "labeled"
        return
    config.experiment.split = "labeled"
    pretrain = config.experiment.pretrain
    pretrain.name, pretrain.split, pretrain.eval_split = "", "unlabeled", ""
    _hasten(pretrain.optimizer)
    if any(method.endswith(FROZEN) for method in config.experiment.methods):
        config.finetune.frozen_learning_rate = 3e-3


def _hasten(optimizer: ml_collections.ConfigDict) -> None:
    """A rate for few steps, of ResNets; Swin's, by AdamW, is high already, and 3e-3 collapses."""
    if optimizer.name == "adam":
        optimizer.update(learning_rate=1e-3, schedule="cosine")
