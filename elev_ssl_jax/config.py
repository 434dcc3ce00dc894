"""Every field of a run's configuration, and the check that comes before anything is built."""

import math
from typing import Any

import ml_collections

from elev_ssl_jax.errors import InputError

# Fields that say where things lie and how often to report; a run may go on with others.
FREE_TO_CHANGE = ("epochs", "data.dir", "data.resident_gib", "checkpoint", "log")


def default() -> ml_collections.ConfigDict:
    """The settings of SimCLR+Elevation in section 5.1.1 of arXiv 2304.06857.

    The result is locked: a config file or flag that names an unknown field fails at once.
    """
    config = ml_collections.ConfigDict()
    config.task = "pretrain"
    config.seed = 0
    config.batch_size = 256  # chips a step, over all devices
    config.epochs = 200

    config.data = data = ml_collections.ConfigDict()
    data.name = "nwrc/classification"  # TFDS name and builder config
    data.dir = ""  # TFDS' data_dir; "" is ~/tensorflow_datasets
    data.split = "unlabeled+labeled[80:]"
    data.eval_split = "test"
    data.probe_split = "labeled[:80]"  # trains the linear probe; "" for none
    data.value_range = (0.0, 6000.0)  # sensor units that become 0 and 1
    data.elevation_scale = 500.0  # metres that become 1
    data.rgb = ()  # bands that are red, green, blue; () means those of a three-band image
    data.resident_gib = 4.0  # data above this size are streamed rather than held on the device
    data.synthetic = ml_collections.ConfigDict()
    data.synthetic.chips = 0  # make this many synthetic chips in the run folder and use them
    data.synthetic.size = 100  # pixels along their side

    config.augment = ml_collections.ConfigDict()
    config.augment.contrastive = contrastive = ml_collections.ConfigDict()
    contrastive.crop_scale = (0.7, 1.0)  # share of the area
    contrastive.crop_ratio = (3 / 4, 4 / 3)  # width over height
    contrastive.flip = 0.5  # probability of each of the two
    contrastive.brightness = 0.4
    contrastive.contrast = 0.4
    contrastive.saturation = 0.4
    contrastive.hue = 0.2  # turns of the colour circle
    contrastive.jitter_probability = 0.5
    contrastive.grayscale = 0.2  # probability
    config.augment.elevation = elevation = ml_collections.ConfigDict()
    elevation.flip = 0.5
    elevation.brightness = 0.2
    elevation.contrast = 0.2
    elevation.saturation = 0.2
    elevation.hue = 0.2
    elevation.jitter_probability = 0.3
    elevation.grayscale = 0.2

    config.model = model = ml_collections.ConfigDict()
    model.encoder = "resnet18"
    model.width = 1.0  # multiplies the channels, for small machines
    model.dtype = "auto"  # of the computation: bfloat16, or float32 on a CPU
    model.projection = (512, 128)  # hidden units and embedding

    config.objective = objective = ml_collections.ConfigDict()
    objective.alpha = 0.5  # L = alpha L_E + (1 - alpha) (lam L_G + (1 - lam) L_L)
    objective.lam = 1.0
    objective.temperature = 0.5
    # What the projection head sees of the encoder's last map: its "mean", or its "style", mean and
    # variance. GLCNet and the paper's text have style, the paper's code has the mean for all.
    objective.global_features = "mean"
    objective.local = local = ml_collections.ConfigDict()
    local.patches = 4  # matching patches of each image
    local.patch_size = 16  # side in pixels of a view
    local.projection = (128, 128)  # hidden units and embedding

    config.loss = loss = ml_collections.ConfigDict()
    loss.chunk_size = 0  # columns of the similarity matrix at a time; 0 is all
    # Equation 5 sums over pixels, the text says root mean square; "mean" is what the reference
    # code computes and what keeps the two terms of one size.
    loss.elevation_reduction = "mean"

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 1e-3  # at the start; cosine decay to zero
    optimizer.weight_decay = 1e-4
    # The text has Adam with weight decay, the code AdamW: "adamw" decays the weights themselves,
    # as the code does; "adam" adds the decay to the gradient (L2), as PyTorch's Adam does.
    optimizer.name = "adamw"

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_epochs = 5
    checkpoint.keep = 2

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 20
    log.eval_every_epochs = 10
    return config.lock()


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that can't work, before any data are read.

    Raises:
      InputError: Names the field, its value and what is allowed.
    """
    # They bring in Flax, which a config file can do without.
    from elev_ssl_jax.objective import ENCODERS, check_image_size

    known = _flat(default())
    for name in _flat(config):
        if name not in known:
            raise InputError(f"config.{name} is unknown; the fields are in elev_ssl_jax/config.py")
    flat = {name: config_value(config, name) for name in known}

    def need(name: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise InputError(f"config.{name} is {flat[name]!r}; it must be {allowed}")

    for name in (
        "batch_size",
        "epochs",
        "checkpoint.every_epochs",
        "checkpoint.keep",
        "log.every_steps",
        "log.eval_every_epochs",
    ):
        need(name, flat[name] >= 1, "at least 1")
    for name in ("seed", "loss.chunk_size", "data.synthetic.chips", "optimizer.weight_decay"):
        need(name, flat[name] >= 0, "0 or more")
    for name in (
        "data.elevation_scale",
        "model.width",
        "objective.temperature",
        "optimizer.learning_rate",
    ):
        need(name, 0 < flat[name] < math.inf, "above 0")

    need("task", config.task == "pretrain", '"pretrain"')
    low_high = "two numbers, the first below the second"
    for name in ("data.value_range", "augment.contrastive.crop_scale"):
        need(name, len(flat[name]) == 2 and flat[name][0] < flat[name][1], low_high)
    scale, ratio = config.augment.contrastive.crop_scale, config.augment.contrastive.crop_ratio
    need("augment.contrastive.crop_scale", scale[0] > 0 and scale[1] <= 1, "in (0, 1]")
    need("augment.contrastive.crop_ratio", 0 < ratio[0] <= 1 <= ratio[1], "around 1")
    need("data.rgb", len(config.data.rgb) in (0, 3), "empty or three band numbers from 0")
    for branch in ("contrastive", "elevation"):
        for name in ("flip", "jitter_probability", "grayscale", "brightness", "contrast"):
            field = f"augment.{branch}.{name}"
            need(field, 0 <= flat[field] <= 1, "in [0, 1]")
        need(f"augment.{branch}.hue", 0 <= flat[f"augment.{branch}.hue"] <= 0.5, "in [0, 0.5]")
        need(
            f"augment.{branch}.saturation",
            flat[f"augment.{branch}.saturation"] >= 0,
            "0 or more",
        )

    need("model.encoder", config.model.encoder in ENCODERS, f"one of {', '.join(ENCODERS)}")
    dtypes = ("auto", "float32", "bfloat16")
    need("model.dtype", config.model.dtype in dtypes, f"one of {', '.join(dtypes)}")
    for name in ("model.projection", "objective.local.projection"):
        need(name, len(flat[name]) == 2 and min(flat[name]) >= 1, "two positive numbers")
    need("objective.alpha", 0 <= config.objective.alpha <= 1, "in [0, 1]")
    need("objective.lam", 0 <= config.objective.lam <= 1, "in [0, 1]")
    features = ("mean", "style")
    need(
        "objective.global_features", flat["objective.global_features"] in features, "mean or style"
    )
    for name in ("objective.local.patches", "objective.local.patch_size"):
        need(name, flat[name] >= 1, "at least 1")
    need("optimizer.name", flat["optimizer.name"] in ("adamw", "adam"), "adamw or adam")
    reductions = ("mean", "sum")
    need(
        "loss.elevation_reduction",
        flat["loss.elevation_reduction"] in reductions,
        "mean or sum",
    )
    if config.data.synthetic.chips:
        check_image_size(config, config.data.synthetic.size, config.data.synthetic.size)


def with_variant(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """Applies what follows the colon in `--config=FILE:VARIANT`: nothing, or `demo`.

    Raises:
      ValueError: There is no such variant.
    """
    if variant == "demo":
        # Small synthetic scenes and a quarter of the channels: minutes on a laptop.
        config.data.synthetic.chips = 1500
        config.data.synthetic.size = 64
        config.model.width = 0.25
        config.batch_size = 64
        config.epochs = 25
    elif variant:
        raise ValueError(f"there is no variant {variant!r}; there is :demo")
    return config


def differences(config: ml_collections.ConfigDict, saved: dict[str, Any]) -> list[str]:
    """Fields in which a saved run differs so that the two can't be one run, each as a sentence."""
    flat = _flat(ml_collections.ConfigDict(saved))
    return [
        f"{name} was {flat.get(name)!r} and is {value!r}"
        for name, value in _flat(config).items()
        if not any(name == free or name.startswith(f"{free}.") for free in FREE_TO_CHANGE)
        and _plain(value) != _plain(flat.get(name))
    ]


def config_value(config: ml_collections.ConfigDict, name: str) -> Any:
    """The value of a dotted field."""
    for part in name.split("."):
        config = config[part]
    return config


def _flat(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields |= _flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def _plain(value: Any) -> Any:
    """JSON has no tuples."""
    return list(value) if isinstance(value, tuple) else value
