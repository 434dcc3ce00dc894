"""The model of a finished run, on chips in the sensors' units."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import sensors, storage
from elev_ssl_jax.config import default
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.finetuning import labelled, loop
from elev_ssl_jax.models.encoders import compute_dtype, encoder_type
from elev_ssl_jax.pretraining import methods
from elev_ssl_jax.recipes import REGRESSION
from elev_ssl_jax.runtime import checkpoint

_BATCH = 32  # a power of two

# Images [B, H, W, C], or, of a model with several inputs, each by its name.
Images = np.ndarray | Mapping[str, np.ndarray]
Function = Callable[[Mapping[str, Any]], jax.Array]  # of the inputs by name


@dataclasses.dataclass(frozen=True)
class Model:
    """What a run has learned; BatchNorm is in inference mode.

    Images are NumPy arrays [B, H, W, C], in the units of the sensor that the run was trained on. If
    it has several inputs (`inputs.names`), they are a dictionary of such arrays; elevation among
    them is [B, h, w] in metres, NaN where missing. Of several sensors some may be missing, which a
    warning says: `results.json` of a fine-tuning has its scores `without` each. Too many for the
    memory are no trouble.
    """

    run: Path
    config: Any = dataclasses.field(repr=False)
    variables: Any = dataclasses.field(repr=False)
    shapes: dict[str, tuple[int, ...]]  # of the features of a chip
    step: int
    commit: str  # of the program that trained it
    checksum: str  # of the weights and of what is said of the run: another training has another
    absent: tuple[str, ...] = ()  # sensors that it does without
    # Of the weights that the run started from, as `starting.origin_of` says it.
    origin: dict[str, Any] | None = dataclasses.field(default=None, repr=False)

    @property
    def inputs(self) -> sensors.Inputs:
        """Which features it takes, and their scale."""
        absent = tuple((name, self.shapes[name][2]) for name in self.absent)
        return sensors.of(self.config)._replace(absent=absent)

    @property
    def given(self) -> tuple[str, ...]:
        """The features that it is to be given."""
        return tuple(name for name in self.inputs.names if name not in self.absent)

    @property
    def ranges_given(self) -> tuple[tuple[float, float], ...]:
        """Of the bands that it is given, in 0..1: one pair for all, or one for each."""
        fields = sensors.of_inputs(self.config, self.given, self.shapes)
        return sensors.pairs(fields.get("value_range", self.config.data.value_range))

    def without(self, *absent: str) -> "Model":
        """The same, which sees nothing of these sensors: what it says is worse then.

        Raises:
          InputError: It has no such sensor, or no other.
        """
        known = [name for name in self.inputs.names if name != sensors.ELEVATION]
        if not set(absent) < set(known):
            raise InputError(
                f"{self.run} sees {', '.join(known)}; it can't do without {', '.join(absent)}"
            )
        return dataclasses.replace(self, absent=absent)

    def warn_of_missing(self, missing: Sequence[str]) -> None:
        """Says once that the run does without sensors that it was trained on."""
        judged = "; its results.json says by how much" * (self.config.task == "finetune")
        _warn(
            f"there is no {', '.join(missing)}: {self.run} does without what it was trained on, "
            f"and is worse for it{judged}"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of a chip's inputs, joined: height, width, bands."""
        size = sensors.image_size(self.inputs, self.shapes)
        return (*size, sensors.channels(self.inputs, self.shapes))

    @property
    def tells(self) -> tuple[str, str] | None:
        """The name and the unit of the quantity that it has learned to tell, if there is one."""
        objective = self.config.objective
        if self.config.task == "finetune":
            regression = self.config.finetune.head == REGRESSION
            return labelled.told_by(self.config) if regression else None
        # A pre-training without elevation, or with a control in its place?
        learned = objective.alpha > 0 and objective.target == "elevation"
        return ("elevation", "m") if learned and sensors.ELEVATION in self.shapes else None

    @property
    def num_classes(self) -> int | None:
        """Of a model that was fine-tuned to tell classes."""
        told = self.config.task == "finetune" and self.config.finetune.head != REGRESSION
        return self.config.finetune.num_classes if told else None

    @property
    def together(self) -> bool:
        """Whether several classes may be present, each with a probability of its own."""
        return self.num_classes is not None and self.config.finetune.target == "present"

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names."""
        named = tuple(self.config.finetune.classes)
        return named or tuple(f"class {i}" for i in range(self.num_classes or 0))

    def features(self, images: Images) -> np.ndarray:
        """The mean over the encoder's last map: float32 [B, F]."""
        model, chosen = self._seeing(images)
        return model._in_batches(model.feature_function(), chosen)

    def predict(self, images: Images) -> np.ndarray:
        """The likeliest class of each image, uint8 [B], or of each pixel [B, H, W].

        Of a run whose classes may be present together, whether each is: uint8 [B, K].

        Raises:
          InputError: The run is not a fine-tuning, or the images don't suit it.
        """
        likely = self.probabilities(images)
        if self.together:
            return (likely > 0.5).astype(np.uint8)
        return likely.argmax(axis=-1).astype(np.uint8)

    def probabilities(self, images: Images) -> np.ndarray:
        """The probability of each class, float32 [B, K], or for each pixel [B, H, W, K].

        Raises:
          InputError: The run is not a fine-tuning, or the images don't suit it.
        """
        model, chosen = self._seeing(images)
        return model._in_batches(model.probability_function(model._size(chosen)), chosen)

    def quantity(self, images: Images) -> np.ndarray:
        """What the run `tells`, over images of the size of its chips: float32 [B, h, w].

        Raises:
          InputError: The run tells no quantity, or the images don't suit it.
        """
        model, chosen = self._seeing(images)
        function = model.quantity_function()
        size = model._size(chosen)
        if size != self.image_shape[:2]:
            raise InputError(
                f"images are {size[0]} x {size[1]} pixels; {self.run} tells {self._told()} from "
                f"{self.image_shape[0]} x {self.image_shape[1]}"
            )
        return model._in_batches(function, chosen)

    def _told(self) -> str:
        if self.tells is None:
            raise InputError(f"{self.run} has not learned elevation, or another quantity")
        return self.tells[0]

    def elevation(self, images: Images) -> np.ndarray:
        """`quantity` of a run that tells elevation, in metres.

        Raises:
          InputError: The run has not learned elevation, or the images don't suit it.
        """
        if self.tells != ("elevation", "m"):
            raise InputError(f"{self.run} has not learned elevation; name a run that has")
        return self.quantity(images)

    # The same three for arrays on the device, by name, one batch at a time.

    def feature_function(self) -> Function:
        """A compiled function from inputs to `features`."""
        encoder = encoder_type(self.config, self.shapes)(
            width=self.config.model.width, dtype=compute_dtype(self.config, _platform())
        )
        variables = {part: tree.get("encoder", {}) for part, tree in self.variables.items()}
        return functools.partial(_features, encoder, self.inputs, variables)

    def probability_function(self, size: tuple[int, int]) -> Function:
        """A compiled function from inputs of `size` pixels to `probabilities`."""
        if self.num_classes is None:
            raise InputError(
                f"{self.run} knows no classes; name a run that was fine-tuned to tell them"
            )
        module = loop.make_model(self.config, self.shapes, _platform(), size)
        link = jax.nn.sigmoid if self.together else jax.nn.softmax
        return functools.partial(_probabilities, module, self.inputs, link, self.variables)

    def quantity_function(self) -> Function:
        """A compiled function from inputs of the chips' size to `quantity`."""
        self._told()
        if self.config.task == "finetune":
            unet = loop.make_model(self.config, self.shapes, _platform())
            scale = tuple(self.config.finetune.scale)
            return functools.partial(_regressed, unet, self.inputs, scale, self.variables)
        config = self.config.copy_and_resolve_references()
        config.objective.alpha = 1.0  # without the heads of the contrast
        module = methods.make_model(config, self.shapes, _platform())
        return functools.partial(_elevation, module, self.inputs, self.variables)

    def check_bands(self, bands: int, name: str, sensor: str) -> None:
        """Raises `InputError` if images of so many bands are not for this model."""
        wanted = self.shapes[sensor][2]
        if bands != wanted:
            raise InputError(f"{name} has {bands} bands; {self.run} takes {wanted}")

    def _seeing(self, images: Images) -> tuple["Model", dict[str, np.ndarray]]:
        """This model, without those of several sensors that the images don't have; and the others.

        Raises:
          InputError: Names what is missing, unknown, or of another form.
        """
        names = self.given
        if not isinstance(images, Mapping):
            if len(names) > 1:
                raise InputError(
                    f"{self.run} takes {', '.join(names)}: a dictionary with an array for each"
                )
            images = {names[0]: images}
        given = {name: array for name, array in images.items() if array is not None}
        there = {name: _numbers(array, name) for name, array in given.items()}
        missing = [name for name in names if name not in there and name != sensors.ELEVATION]
        unknown = [name for name in there if name not in self.inputs.names]
        if missing and unknown:  # misspelt, perhaps
            raise InputError(f"{self.run} takes {', '.join(names)}; it knows no {unknown[0]}")
        model = self
        if missing and set(there) - {sensors.ELEVATION}:
            self.warn_of_missing(missing)
            model = self.without(*self.absent, *missing)
        return model, model._checked(there)

    def _checked(self, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those that the model takes."""
        names = self.given
        for name in names:
            if name not in images:
                raise InputError(f"{self.run} takes {', '.join(names)}; there is no {name}")
            array, what = images[name], "images" if name == "image" else f"images of {name}"
            form = "[B, h, w]" if name == sensors.ELEVATION else "[B, H, W, C]"
            if array.ndim != len(form.split(", ")) or not array.size:
                raise InputError(f"{what} have shape {array.shape}; {form} is needed")
            if name != sensors.ELEVATION:
                self.check_bands(array.shape[3], "an image", name)
                if np.isinf(array).any() or np.isnan(array).all(axis=(1, 2)).any():
                    raise InputError("an image is infinite somewhere, or has a band without values")
        chosen = {name: images[name] for name in names}
        counts = {len(array) for array in chosen.values()}
        sizes = {chosen[name].shape[1:3] for name in names if name != sensors.ELEVATION}
        if len(counts) > 1 or len(sizes) > 1:
            raise InputError(f"{', '.join(names)} differ in number or size")
        return chosen

    def _size(self, chosen: dict[str, np.ndarray]) -> tuple[int, int]:
        """Of images in pixels."""
        _, height, width, _ = next(
            array.shape for name, array in chosen.items() if name != sensors.ELEVATION
        )
        return height, width

    def _in_batches(self, function, chosen):
        count = len(next(iter(chosen.values())))
        # Batches are filled up to a power of two, so that few programs are compiled in all.
        size = min(_BATCH, 1 << (count - 1).bit_length())
        parts = []
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count
            batch = {name: jnp.asarray(array[rows]) for name, array in chosen.items()}
            parts.append(np.asarray(function(batch))[: count - start])
        return np.concatenate(parts)


@functools.cache
def _warn(words: str) -> None:
    """Once."""
    print(f"warning: {words}", file=sys.stderr)


def load(run: str | Path) -> Model:
    """The model of a finished run, from its last checkpoint.

    Raises:
      InputError: There is no such run, it is not finished, or its checkpoint is damaged.
    """
    run = storage.run_path(run)
    saved = checkpoint.load(run)
    steps = saved.about["steps"]
    if saved.step < steps:
        raise InputError(
            f"{run} is not finished (step {saved.step} of {steps}); the command that started it "
            "goes on"
        )
    config = default()
    try:
        config.update(saved.about["config"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{run} is of another version of this program: {error}") from error
    return Model(
        run=run,
        config=config,
        variables=saved.variables,
        shapes=checkpoint.shapes_of(saved.about),
        step=saved.step,
        commit=saved.about["commit"],
        checksum=str(saved.about["checksum"]),
        origin=saved.about.get("origin"),
    )


def _numbers(array: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(array)
    except ValueError as error:
        raise InputError(f"{name} is no array: {error}") from error
    if array.dtype.kind not in "buif":
        raise InputError(f"{name} has type {array.dtype}; integers or floats are needed")
    return array


def _platform():
    return jax.devices()[0].platform


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(encoder, inputs, variables, chips):
    last = encoder.apply(variables, sensors.shown(inputs, chips), train=False)[-1]
    return jnp.mean(last.astype(jnp.float32), axis=(1, 2))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _probabilities(module, inputs, link, variables, chips):
    return link(module.apply(variables, sensors.shown(inputs, chips), train=False))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _regressed(module, inputs, scale, variables, chips):
    mean, deviation = scale
    told = module.apply(variables, sensors.shown(inputs, chips), train=False)
    return mean + deviation * told[..., 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _elevation(module, inputs, variables, chips):
    views = sensors.shown(inputs, chips)[:, None]
    return module.apply(variables, views, train=False)["elevation"] * inputs.elevation_scale
