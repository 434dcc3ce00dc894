"""Chips with labels: what of them is learned, how often, and by what they are judged."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import fields, metrics, sensors, squares
from elev_ssl_jax.config import class_names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.files import UNLABELLED
from elev_ssl_jax.finetuning import objective
from elev_ssl_jax.models import encoders
from elev_ssl_jax.recipes import OF_CHIPS, REGRESSION
from elev_ssl_jax.runtime import run_folder


class Labelled(NamedTuple):
    """Chips with their classes, or with a quantity."""

    inputs: Any  # by feature: sensors [N, H, W, C] in their units, `elevation` [N, h, w] in metres
    # uint8: a class for each chip [N] or each pixel [N, H, W], 255 is unlabelled; or, of test
    # chips, whether each class is there [N, K]. Or a quantity, float32 [N, h, w], NaN if unknown.
    targets: Any
    groups: Any = None  # str [N], the block of ground that each lies in, if that is known

    def take(self, index: Any) -> "Labelled":
        """Those at `index`, a slice or an array of positions."""
        return jax.tree.map(lambda array: array[index], self)


def target_of(config: Any) -> str:
    """`config.finetune.target`, where "" is what suits the head."""
    settings = config.finetune
    usual = {name: "label" for name in OF_CHIPS} | {REGRESSION: sensors.ELEVATION}
    return settings.target or usual.get(settings.head, "mask")


def told_by(config: Any) -> tuple[str, str]:
    """The name of what a regression tells, and its unit, which may be ""."""
    if target_of(config) == sensors.ELEVATION:
        return sensors.ELEVATION, "m"
    name, unit = config.finetune.quantity or (sensors.QUANTITY, "")
    return name, unit


def epoch_rows(targets: np.ndarray, *, oversample: bool) -> np.ndarray:
    """Which chips come in an epoch, int32 [R]: each once, or those of rarer classes more often.

    To `oversample`, each comes as often as the chips of its class, its label or its mask's
    commonest, go into those of the commonest class, rounded.
    """
    rows = np.arange(len(targets), dtype=np.int32)
    if not oversample:
        return rows
    classes = metrics.commonest_class(targets)
    counts = np.bincount(classes + 1, minlength=2)
    most = counts[1:].max()  # the first are of no class
    each = np.where((classes < 0) | (most == 0), most, counts[classes + 1])
    return np.repeat(rows, np.rint(np.maximum(most, 1) / np.maximum(each, 1)).astype(int))


def fingerprints(
    train: Labelled, test: Labelled, validation: Labelled | None = None
) -> dict[str, str]:
    """Of the chips of a fine-tuning, as `run_folder` takes them."""
    return {
        role: run_folder.fingerprint({**chips.inputs, "target": chips.targets})
        for role, chips in (("train", train), ("test", test), ("validation", validation))
        if chips is not None
    }


def as_targets(classes: np.ndarray) -> np.ndarray:
    """Classes of any integer type as `Labelled.targets`; negative ones are unlabelled.

    Raises:
      InputError: A class is above 255.
    """
    if classes.max(initial=0) > UNLABELLED:
        raise InputError(f"class {classes.max()} is above 254; number the classes from 0")
    return np.where(classes < 0, UNLABELLED, classes).astype(np.uint8)


def with_classes(config: Any, train: Labelled, test: Labelled) -> Any:
    """The configuration with as many classes as the data have, if it leaves that to them.

    Of a regression, with the scale of what is learned.
    """
    if config.finetune.head == REGRESSION:
        known = train.targets[~np.isnan(train.targets)].astype(np.float64)
        if len(known) and not config.finetune.scale:
            config = config.copy_and_resolve_references()
            config.finetune.scale = float(known.mean()), float(known.std()) or 1.0
        return config
    if config.finetune.num_classes:
        return config
    known = [chips.targets[chips.targets != UNLABELLED] for chips in (train, test)]
    config = config.copy_and_resolve_references()
    named = len(config.finetune.classes)
    highest = max(int(classes.max(initial=1)) for classes in known)
    config.finetune.num_classes = named or highest + 1
    return config


def as_judged(config: Any, chips: Labelled, field: str = "data.eval_split") -> Labelled:
    """Chips as they are judged: `as_squares`, in which there is something to tell apart.

    Args:
      config: The run's configuration.
      chips: As they were read.
      field: That names their split.

    Raises:
      InputError: What is known of them is all of one class, or of one value.
    """
    chips, settings = as_squares(config, chips), config.finetune
    targets = chips.targets
    split = fields.flatten(config)[field]
    where = f"the {len(targets)} images to judge by, of {split} of {config.data.name}"
    if settings.head == REGRESSION:
        if not np.nanstd(targets):
            raise InputError(
                f"{where}, are all of one {told_by(config)[0]}; name others by --config.{field}, "
                "or prepare again"
            )
        return chips
    if target_of(config) == "present" and not targets.any():
        raise InputError(
            f"config.finetune.present_share is {settings.present_share}, which no class covers of "
            f"any of the {len(targets)} images to judge by; lower it"
        )
    if len(np.unique(targets[targets != UNLABELLED])) < 2:
        raise InputError(f"{where}, have one class at most; there is nothing to tell apart")
    return chips


def as_squares(config: Any, chips: Labelled) -> Labelled:
    """Chips cut into squares at fixed places, with what is to be said of each.

    The squares of `config.augment.crop_size` stand side by side around the middle of a chip, as
    many as fit in; those of one chip follow one another, and are of its group.
    """
    side = config.augment.crop_size
    size = sensors.image_size(sensors.of(config), shapes_of(config, chips))
    if side and size != (side, side):
        starts = (long % side // 2 + side * np.arange(long // side) for long in size)
        places = np.array([*itertools.product(*starts)])
        inputs = {
            name: Squares(array, places, side, size if name in sensors.FIELDS else None)
            for name, array in chips.inputs.items()
        }
        targets, groups = chips.targets, chips.groups
        if targets.ndim > 2:
            of_cells = config.finetune.head == REGRESSION
            targets = Squares(targets, places, side, size if of_cells else None)[:]
        chips = Labelled(
            inputs, targets, None if groups is None else np.repeat(groups, len(places))
        )
    count, share = config.finetune.num_classes, config.finetune.present_share
    learned = as_learned(jnp.asarray(chips.targets), target_of(config), count, share)
    return chips._replace(targets=np.asarray(learned))


class Squares:
    """Squares of chips, those of one after another, which are cut as they are asked for.

    All of a test at once would take as much memory again as its chips.
    """

    def __init__(
        self,
        chips: np.ndarray,
        places: np.ndarray,
        side: int,
        size: tuple[int, int] | None = None,
    ):
        """Of `chips` [N, H, W, ...], or of a field [N, h, w] of images of `size` pixels.

        Args:
          chips: What to cut.
          places: Top row and left column of the squares of each, in pixels, [P, 2].
          side: Of a square in pixels.
          size: Height and width of the images, if `chips` are one of `sensors.FIELDS` of them.
        """
        self._chips, self._places, self._side, self._size = chips, places, side, size

    @property
    def shape(self) -> tuple[int, ...]:
        """[N P, side, side, ...], or as many cells as a field has in a square."""
        return (len(self._chips) * len(self._places), *self[:1].shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        """The squares at `index`, a slice or an array of positions."""
        rows = np.arange(len(self._chips) * len(self._places))[index]
        chip, place = np.divmod(rows, len(self._places))
        top, left = self._places[place].T
        if self._size is not None:
            there = jnp.asarray(top), jnp.asarray(left)
            cells = jnp.asarray(self._chips[chip])
            return np.asarray(squares.cut_elevation(cells, there, self._side, self._size))
        within = np.arange(self._side)
        rows, columns = top[:, None, None] + within[:, None], left[:, None, None] + within
        return self._chips[chip[:, None, None], rows, columns]


def shapes_of(config: Any, chips: Labelled) -> dict[str, tuple[int, ...]]:
    """Of each input of a chip, and of what a regression learns of it."""
    shapes = {name: array.shape[1:] for name, array in chips.inputs.items()}
    if config.finetune.head == REGRESSION:
        shapes[target_of(config)] = chips.targets.shape[1:]
    return shapes


def image_shape_of(config: Any, chips: Labelled) -> tuple[int, int, int]:
    """Of the image that the network sees of a chip, or of a square of it: [H, W, C]."""
    chosen = sensors.of(config)
    shapes = squares.cut_shapes(shapes_of(config, chips), config.augment.crop_size)
    return (*sensors.image_size(chosen, shapes), sensors.channels(chosen, shapes))


def check_chips(
    config: Any,
    train: Labelled,
    test: Labelled,
    labels: int | None = None,
    *,
    validation: Labelled | None = None,
) -> None:
    """Refuses chips that can't be learned from, before training starts.

    Raises:
      InputError: There are fewer chips than `labels`, all are of one class, or a class is unknown.
    """
    data, count = config.data, len(train.targets)
    if labels is not None and labels > count:
        raise InputError(f"{labels} labels are more than {data.name} has: {count}; ask for fewer")
    train = train.take(slice(labels))
    named = (train, "labelled"), (test, "test"), (validation, "validation")
    for chips, name in named:
        if chips is not None:
            check = _check_quantity if config.finetune.head == REGRESSION else _check_classes
            check(config, chips, name)
    shapes = shapes_of(config, train)
    sensors.check(config, shapes)
    sensors.check_values(config, train.inputs)
    if (others := shapes_of(config, test)) != shapes:
        raise InputError(
            f"the labelled chips of {data.name} are {shapes}, its test chips {others}; "
            "they must be alike"
        )
    height, width, _ = image_shape_of(config, train)
    encoders.check_size(config, height, width)
    sizes: dict[str, tuple[int, ...]] = {"images": (height, width)}
    cut = squares.cut_shapes(shapes, config.augment.crop_size)
    sizes |= {name: (cut[name][0], cut[name][1]) for name in sensors.FIELDS if name in cut}
    for name, (height, width) in sizes.items():
        if config.augment.finetune.transpose and height != width:
            raise InputError(
                f"config.augment.finetune.transpose is {config.augment.finetune.transpose}; it "
                f"must be 0 for {name} of {height} x {width}"
            )


def _check_classes(config, chips, name):
    data, classes = config.data, config.finetune.num_classes
    weights, names = tuple(config.finetune.class_weights), class_names(config)
    if weights not in ((), (objective.BALANCED,)) and len(weights) != classes:
        raise InputError(
            f"config.finetune.class_weights is {weights}; {data.name} has {classes} classes "
            f"({', '.join(names)}): give a number for each, or balanced"
        )
    values = np.unique(chips.targets)
    known = values[values != UNLABELLED]
    unknown = known[known >= classes]
    if len(unknown):
        raise InputError(
            f"the {name} chips of {data.name} have class {unknown[0]}; config.finetune."
            f"num_classes is {classes}, so that it must be below {classes}, or 255 (unlabelled)"
        )
    if len(known) < 2:
        raise InputError(
            f"the {len(chips.targets)} {name} chips of {data.name} are all "
            + (f"of class {names[known[0]]}" if len(known) else "unlabelled")
            + "; there is nothing to tell apart"
        )


def _check_quantity(config, chips, name):
    told, count = told_by(config)[0], len(chips.targets)
    if np.isnan(chips.targets).all():
        raise InputError(f"none of the {count} {name} chips of {config.data.name} has any {told}")


def as_learned(masks: jax.Array, target: str, num_classes: int, present_share: float) -> jax.Array:
    """What is learned of masks uint8 [B, H, W].

    Args:
      masks: Or what the target asks for already.
      target: As `Setup.target`.
      num_classes: How many classes there are.
      present_share: Of all pixels, that a class has at least which is present.

    Returns:
      For "commonest" each mask's commonest class [B], of equals the lowest, where 255 takes part;
      for "present" uint8 [B, K], whether a class is there; else the masks.
    """
    if target not in ("commonest", "present") or masks.ndim < 3:
        return masks
    classes = np.array([*range(num_classes), UNLABELLED], np.uint8)
    counts = jnp.stack([jnp.sum(masks == value, axis=(1, 2)) for value in classes], axis=-1)
    if target == "commonest":
        return jnp.asarray(classes)[jnp.argmax(counts, axis=-1)]
    least = present_share * masks.shape[1] * masks.shape[2]
    return (counts[:, :-1] >= least).astype(jnp.uint8)
