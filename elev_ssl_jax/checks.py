"""What a configuration may say, checked before anything is built."""

from fnmatch import fnmatch

import ml_collections

from elev_ssl_jax.config import SEEDS_APART, default
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.fields import TASKS, belongs, flatten, same
from elev_ssl_jax.recipes import (
    FROZEN,
    GIVEN,
    METHODS,
    METRICS,
    METRICS_OF_CLASSES,
    METRICS_OF_PRESENCE,
    OF_CHIPS,
    PROBES,
    REGRESSION,
    goes_with,
    made_of,
    recipe,
)
from elev_ssl_jax.rules import (
    ANY,
    Rule,
    any_of,
    different,
    is_auto,
    is_named_range,
    is_range,
    number,
    numbers_or_auto,
    one_of,
    several,
    whole,
)
from elev_ssl_jax.storage import is_address, names_run

_NAME = Rule("a name", lambda v: isinstance(v, str) and v.isidentifier())
_SHARE = number(0, 1)
_POSITIVE = number(0, above=True)
_TWO_SIZES = several("two whole numbers above 0", whole(1), lambda v: len(v) == 2)
_METHODS = (*METHODS, *(name + FROZEN for name in METHODS if not METHODS[name].members))
_GIVEN = Rule("", lambda v: isinstance(v, str) and v.startswith(GIVEN) and v.isidentifier())
_ENCODER = Rule(
    "",
    lambda v: (
        isinstance(v, str)
        and v.partition("=")[0].isidentifier()
        and v.partition("=")[2] != ""
        and names_run(v.partition("=")[2])
    ),
)

_RANGES = Rule(
    "two numbers, the first below the second, such a pair for each band, a name and such a "
    "pair for each sensor, or auto",
    lambda v: (
        is_range(v)
        or is_auto(v)
        or (len(v) > 0 and (all(map(is_range, v)) or all(map(is_named_range, v))))
    ),
)

_MOUNTED = Rule(
    "a folder of this machine, such as where a bucket is mounted (gcsfuse, mount-s3): array_record "
    "can't be read in one",
    lambda v: not is_address(v),
)

# The first pattern that a field's name matches is its rule. What a text that names data or folders
# stands for is looked at where these are opened.
_RULES = {
    "task": one_of(*TASKS),
    "seed": whole(0, 2**31 - 1),
    "microbatch_size": whole(0),
    "*init_from": Rule("a run's folder, which may be gs://BUCKET/FOLDER", names_run),
    "*init_bands": several("band numbers from 0", whole(0), any_of),
    "init_decoder": one_of(True, False),
    "data.inputs": several(
        "names of features, each once; elevation may be the last of several",
        _NAME,
        lambda v: len(v) > 0 and different(v) and "elevation" not in (*v[:-1], v[0]),
    ),
    "data.value_range": _RANGES,
    "data.scaling": one_of("range", "crop_max"),
    "data.bands": several("different band numbers from 0", whole(0), different),
    "data.mean": numbers_or_auto(ANY),
    "data.std": numbers_or_auto(_POSITIVE),
    "data.dir": _MOUNTED,
    "data.transfer.dir": _MOUNTED,
    "data.nodata": several("numbers", Rule("", lambda v: isinstance(v, int | float)), any_of),
    "data.elevation_scale": _POSITIVE,
    "data.rgb": several(
        "empty, or three different band numbers from 0",
        whole(0),
        lambda v: len(v) in (0, 3) and different(v),
    ),
    "data.near_infrared": several(
        "empty, or a band number from 0", whole(0), lambda v: len(v) <= 1
    ),
    "data.transfer.inputs": several("names of features, each once", _NAME, different),
    "data.transfer.value_range": _RANGES,
    "data.transfer.bands": several("different band numbers from 0", whole(0), different),
    "data.resident_gib": number(0),
    "data.synthetic.chips": whole(0),
    "data.synthetic.size": whole(1),
    "augment.contrastive.crop_scale": several(
        "two numbers in (0, 1], the second not below the first",
        number(0, 1, above=True),
        lambda v: len(v) == 2 and v[0] <= v[1],
    ),
    "augment.contrastive.crop_ratio": several(
        "two numbers around 1", _POSITIVE, lambda v: len(v) == 2 and v[0] <= 1 <= v[1]
    ),
    "augment.crop_size": whole(0),
    "augment.*.saturation": number(0),
    "augment.*.hue": number(0, 0.5),
    "augment.*": _SHARE,
    "model.width": _POSITIVE,
    "model.dtype": one_of("auto", "float32", "bfloat16"),
    "model.projection": Rule(
        f"{_TWO_SIZES.allowed}, or ()", lambda v: tuple(v) == () or _TWO_SIZES.holds(v)
    ),
    "*.projection": _TWO_SIZES,
    "model.fusion": one_of("early", "late"),
    "model.elevation_padding": one_of("zeros", "edge"),
    "model.batchnorm_groups": whole(1),
    "objective.alpha": _SHARE,
    "objective.lam": _SHARE,
    "objective.temperature": _POSITIVE,
    "objective.positives": one_of("views", "sensors"),
    "objective.target": one_of("elevation", "shuffled", "slope", "brightness", "ndvi"),
    "objective.negatives": one_of("all", "across"),
    "objective.global_features": one_of("mean", "style", "map"),
    "objective.local.*": whole(1),
    "loss.chunk_size": whole(0),
    "loss.elevation_reduction": one_of("mean", "sum"),
    "loss.level_weight": number(0),
    "loss.relief_weight": number(0),
    "*optimizer.learning_rate": _POSITIVE,
    "*optimizer.scaling": one_of("none", "linear", "sqrt"),
    "*optimizer.warmup_epochs": number(0),
    "*optimizer.schedule": one_of("cosine", "constant"),
    "*optimizer.encoder_scale": number(0),
    "*optimizer.weight_decay": number(0),
    "*optimizer.name": one_of("adamw", "adam", "lars"),
    "*optimizer.drop_epoch": whole(0),
    "finetune.head": one_of("linear", "unet", "plain_unet", "swin_unet", REGRESSION, *PROBES),
    "finetune.target": one_of("", "label", "mask", "commonest", "present", "elevation", "quantity"),
    "finetune.quantity": several(
        "a name and a unit, which may be empty",
        Rule("", lambda v: isinstance(v, str)),
        lambda v: len(v) in (0, 2),
    ),
    "finetune.scale": several(
        "(), or a mean and a standard deviation above 0",
        ANY,
        lambda v: not v or (len(v) == 2 and v[1] > 0),
    ),
    "finetune.present_share": number(0, 1, above=True),
    "finetune.devices": whole(0),
    "finetune.patience": whole(0),
    "finetune.loss": one_of("cross_entropy", "focal", "dice", "cross_entropy+dice"),
    "finetune.focal_gamma": number(0),
    "finetune.label_smoothing": number(0, 1),
    "finetune.class_weights": several(
        "(), a number above 0 for each class, or balanced",
        Rule("", lambda v: v == "balanced" or _POSITIVE.holds(v)),
        lambda v: "balanced" not in v or len(v) == 1,
    ),
    "finetune.drop_sensor": number(0, 1),
    "finetune.num_classes": Rule(
        "0 or a whole number in 2..255", lambda v: type(v) is int and (v == 0 or 2 <= v <= 255)
    ),
    "finetune.classes": several(
        "different names", Rule("", lambda v: isinstance(v, str) and v != ""), different
    ),
    "finetune.frozen_epochs": whole(0),
    "finetune.frozen_learning_rate": _POSITIVE,
    "finetune.frozen_batchnorm": one_of("inference", "training"),
    "experiment.methods": several(
        f"different ones of {', '.join(_METHODS)}, and {GIVEN}NAME of experiment.encoders",
        Rule("", lambda v: v in _METHODS or _GIVEN.holds(v)),
        lambda v: len(v) > 0 and different(v),
    ),
    "experiment.tasks": several(
        "different ones of linear, unet, probe, knn",
        one_of("linear", "unet", *PROBES),
        different,
    ),
    "experiment.budget_hours": number(0),
    "experiment.encoders": several(
        "NAME=FOLDER, each of another name; a folder may be gs://BUCKET/FOLDER",
        _ENCODER,
        lambda v: different([entry.split("=", 1)[0] for entry in v]),
    ),
    "experiment.labels": several(
        "different whole numbers above 0, or shares in (0, 1]",
        Rule("", lambda v: whole(1).holds(v) or (isinstance(v, float) and 0 < v <= 1)),
        lambda v: len(v) > 0 and different(v),
    ),
    "experiment.label_draws": whole(0),
    "experiment.metrics": several("different metrics", one_of(*METRICS), different),
    "experiment.stratified": one_of(True, False),
    "finetune.oversample": one_of(True, False),
    "experiment.seeds": whole(1, SEEDS_APART),
    "experiment.pretrain_seeds": whole(1),
    "*batch_size": whole(1),
    "epochs": whole(0),
    "*epochs": whole(1),
    "checkpoint.keep": whole(1),
    "log.every_steps": whole(1),
}


def check(config: ml_collections.ConfigDict, *, of_experiment: bool = False) -> None:
    """Refuses values that can't work, before any data are read.

    Args:
      config: A run's.
      of_experiment: Whether it is one of an experiment's fine-tunings.

    Raises:
      InputError: Names the field, its value and what is allowed.
    """
    # They bring in Flax, which a config file can do without.
    from elev_ssl_jax.models.encoders import ENCODERS

    known = flatten(default())
    flat = flatten(config)
    for name in flat:
        if name not in known:
            raise InputError(
                f"config.{name} is unknown; the fields are in elev_ssl_jax/config/defaults.py"
            )
    for name in known:
        if name not in flat:
            raise InputError(f"config.{name} is missing; begin with elev_ssl_jax.config.default()")

    def need(name: str, fine: bool, allowed: str) -> None:
        if not fine:
            raise InputError(f"config.{name} is {flat[name]!r}; it must be {allowed}")

    rules = {"model.encoder": one_of(*ENCODERS), **_RULES}
    need("task", config.task in TASKS, rules["task"].allowed)
    for name, value in flat.items():
        if not belongs(name, TASKS[config.task]) and not same(value, known[name]):
            raise InputError(
                f"config.{name} is {value!r}, which the task {config.task} doesn't use; leave it "
                f"at {known[name]!r}"
            )
        rule = next((rules[pattern] for pattern in rules if fnmatch(name, pattern)), None)
        if rule is not None:
            need(name, rule.holds(value), rule.allowed)

    # What depends on two fields.
    for prefix in ("", "experiment.pretrain."):
        started = flat[f"{prefix}init_from"] or not flat[f"{prefix}init_bands"]
        need(f"{prefix}init_bands", bool(started), f"() without {prefix}init_from")
    decoded = config.init_from and config.objective.alpha
    need(
        "init_decoder",
        bool(decoded) or not config.init_decoder,
        "False without init_from, or where elevation has no weight",
    )
    micro = config.microbatch_size
    need(
        "microbatch_size",
        micro == 0 or config.batch_size % micro == 0,
        f"0 or a divisor of batch_size, {config.batch_size}",
    )
    batch = micro or flat["experiment.pretrain." * (config.task == "experiment") + "batch_size"]
    groups = config.model.batchnorm_groups
    need("model.batchnorm_groups", batch % groups == 0, f"a divisor of {batch} chips at a time")
    for prefix in ("", "experiment.pretrain."):
        name = f"{prefix}optimizer.warmup_epochs"
        warm = flat[name] == 0 or flat[name] < flat[f"{prefix}epochs"]
        need(name, warm, f"below {prefix}epochs")
        drop, schedule = flat[f"{prefix}optimizer.drop_epoch"], flat[f"{prefix}optimizer.schedule"]
        after = drop == 0 or (schedule == "constant" and drop > flat[name])
        need(f"{prefix}optimizer.drop_epoch", after, "0, or after the warm-up of a constant rate")
    frozen = config.task != "pretrain" and config.finetune.frozen_epochs > 0
    need("epochs", config.epochs > 0 or frozen, "1 or more")
    chosen = config.task == "finetune" and bool(config.data.validation_split)
    need("epochs", config.epochs > 0 or not chosen, "1 or more with data.validation_split")
    if config.task == "experiment":
        for method in config.experiment.methods:
            tasks = config.experiment.tasks
            fits = any(goes_with(method, head) for head in tasks or (config.finetune.head,))
            field = "experiment.tasks" if tasks else "finetune.head"
            need(field, fits, f"another with {method} among experiment.methods")
        aside = not config.data.transfer.name or bool(config.experiment.tasks)
        need("data.transfer.name", aside, "empty without experiment.tasks")
        own = not config.experiment.tasks or config.finetune.target in ("", "commonest")
        need("finetune.target", own, "'' or 'commonest' with experiment.tasks")
        need(
            "experiment.budget_hours",
            bool(config.experiment.tasks) or not config.experiment.budget_hours,
            "0 without experiment.tasks",
        )
        methods = [m for m in config.experiment.methods if recipe(m).members]
        allowed = f"one class a chip or pixel with {', '.join(methods)}"
        need("finetune.target", not methods or config.finetune.target != "present", allowed)
        present = config.finetune.target == "present"
        metrics = METRICS_OF_PRESENCE if present else METRICS_OF_CLASSES
        suit = set(config.experiment.metrics) <= set(metrics)
        aim = f" with finetune.target={config.finetune.target}" * bool(config.finetune.target)
        need("experiment.metrics", suit, f"of {', '.join(metrics)}{aim}")
        for its in made_of(config.experiment.methods):
            wanted = its.fields.get("data.inputs", ())
            given = set(wanted) <= set(config.data.inputs)
            need("data.inputs", given, f"with {', '.join(wanted)}, which {its.title} sees")
        most = 2**31 - SEEDS_APART * config.experiment.pretrain_seeds
        need("seed", config.seed < most, f"below {most}: each repetition has its own")
    if config.finetune.classes:
        count = len(config.finetune.classes)
        need("finetune.num_classes", config.finetune.num_classes in (0, count), f"0 or {count}")
    if config.finetune.target == "present":
        plain = config.finetune.loss == "cross_entropy" and not config.finetune.label_smoothing
        need("finetune.loss", plain, "cross_entropy, not smoothed, with finetune.target=present")
        weighed = len(config.finetune.class_weights) > 0
        need("finetune.class_weights", not weighed, "() with finetune.target=present")
    need("data.mean", not config.data.mean or len(config.data.std) > 0, "() without data.std")
    by_maximum = config.data.scaling == "crop_max"
    need("data.std", not (config.data.std and by_maximum), "() with data.scaling=crop_max")
    for name in ("rgb", "near_infrared"):
        shown = not config.data.bands or set(config.data[name]) <= set(config.data.bands)
        need(f"data.{name}", shown, "among data.bands")
    need(
        "loss.relief_weight",
        any(config.loss[f"{part}_weight"] for part in ("level", "relief")),
        "above 0 with loss.level_weight=0",
    )
    late = config.model.fusion == "late"
    need("data.bands", not (late and config.data.bands), "() with model.fusion=late")
    names = [name for name in config.data.inputs if name != "elevation"]
    objective = config.objective
    if objective.positives == "sensors":
        two = len(config.data.inputs) == len(names) == 2
        need("data.inputs", two, "two sensors with objective.positives=sensors")
        need("model.fusion", late, "late with objective.positives=sensors")
        need("objective.lam", objective.lam == 1, "1 with objective.positives=sensors")
        features = objective.global_features
        need("objective.global_features", features != "style", "mean or map of two sensors")
    else:
        features = objective.global_features
        need("objective.global_features", features != "map", "mean or style of two views")
        need("model.projection", len(config.model.projection) == 2, _TWO_SIZES.allowed)
    head, target = config.finetune.head, config.finetune.target
    compared = of_experiment or config.task == "experiment"
    need("finetune.head", compared or head not in PROBES, "trained, but in an experiment")
    swin = config.model.encoder == "swin_t" or config.task == "experiment"
    need("model.encoder", swin or head != "swin_unet", "swin_t with finetune.head=swin_unet")
    fitting: tuple[str, ...] = ("", "label", "commonest") if head in OF_CHIPS else ("", "mask")
    fitting += ("present",) * (head == "linear")
    if head == REGRESSION:
        fitting = ("", "elevation", "quantity")
        need("finetune.head", not compared, "another in an experiment, which compares classes")
        seen = target == "quantity" or "elevation" not in config.data.inputs
        need("data.inputs", seen, "without elevation, to learn it")
        for name in ("loss", "class_weights", "label_smoothing", "oversample", "num_classes"):
            usual = default().finetune[name]
            need(f"finetune.{name}", config.finetune[name] == usual, f"{usual!r} in a regression")
    allowed = " or ".join(repr(name) for name in fitting)
    need("finetune.target", target in fitting, f"{allowed} with finetune.head={head}")
    several = len(names) > 1 or not config.finetune.drop_sensor
    need("finetune.drop_sensor", several, "0 with a single sensor")
    if config.data.synthetic.chips:
        kinds = ("classification", "segmentation")
        seen = set(config.data.inputs) - {"elevation"}
        made_up = seen <= {"image"} or seen <= {"s1", "s2"}
        need("data.inputs", made_up, "image, or s1 and s2, of synthetic chips")
        names = [f"{builder}/{kind}" for builder in ("nwrc", "chips") for kind in kinds]
        own = config.experiment.pretrain.name in ("", config.data.name)
        need("experiment.pretrain.name", own, "empty with synthetic chips")
        need("data.name", config.data.name in names, f"{', '.join(names)} for synthetic chips")
        others = "empty with synthetic chips; --config.data.synthetic.chips=0 takes your own"
        need("data.dir", not config.data.dir, others)
