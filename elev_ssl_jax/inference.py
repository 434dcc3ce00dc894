"""The model of a finished run, on images in sensor units."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import augment, checkpoint, finetune, objective
from elev_ssl_jax.config import default
from elev_ssl_jax.errors import InputError

_BATCH = 32  # a power of two


@dataclasses.dataclass(frozen=True)
class Model:
    """What a run has learned; BatchNorm is in inference mode.

    Images are NumPy arrays [B, H, W, C] in sensor units, of the bands and units that the run was
    trained on; `image_shape` is that of its chips. Too many for the memory are no trouble.
    """

    run: Path
    config: Any = dataclasses.field(repr=False)
    variables: Any = dataclasses.field(repr=False)
    image_shape: tuple[int, int, int]
    elevation_shape: tuple[int, int] | None  # of a pre-training with elevation
    step: int
    commit: str  # of the program that trained it

    @property
    def num_classes(self) -> int | None:
        """Of a fine-tuned model."""
        return self.config.finetune.num_classes if self.config.task == "finetune" else None

    def features(self, images: np.ndarray) -> np.ndarray:
        """The mean over the encoder's last map: float32 [B, F]."""
        return self._in_batches(self.feature_function(), images)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The likeliest class of each image, uint8 [B], or of each pixel [B, H, W].

        Raises:
          InputError: The run is not a fine-tuning, or the images don't suit it.
        """
        return self.probabilities(images).argmax(axis=-1).astype(np.uint8)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class, float32 [B, K], or for each pixel [B, H, W, K].

        Raises:
          InputError: The run is not a fine-tuning, or the images don't suit it.
        """
        return self._in_batches(self.probability_function(images.shape[1:3]), images)

    def elevation(self, images: np.ndarray) -> np.ndarray:
        """Elevation in metres over images of the size of the run's chips: float32 [B, h, w].

        Raises:
          InputError: The run has not learned elevation, or the images don't suit it.
        """
        if self.elevation_shape is not None and images.shape[1:3] != self.image_shape[:2]:
            raise InputError(
                f"images are {images.shape[1]} x {images.shape[2]} pixels; {self.run} tells "
                f"elevation from {self.image_shape[0]} x {self.image_shape[1]}"
            )
        return self._in_batches(self.elevation_function(), images)

    # The same three for arrays on the device, one batch at a time.

    def feature_function(self) -> Callable[[jax.Array], jax.Array]:
        """A compiled function from images [B, H, W, C] to `features`."""
        encoder = objective.ENCODERS[self.config.model.encoder](
            width=self.config.model.width, dtype=objective.compute_dtype(self.config)
        )
        variables = {part: self.variables[part]["encoder"] for part in self.variables}
        return self._compiled(_features, encoder, variables)

    def probability_function(self, size: tuple[int, int]) -> Callable[[jax.Array], jax.Array]:
        """A compiled function from images [B, *size, C] to `probabilities`."""
        if self.num_classes is None:
            raise InputError(
                f"{self.run} is a pre-training, which knows no classes; name a fine-tuned run"
            )
        module = finetune.make_model(self.config, (size[0], size[1]))
        return self._compiled(_probabilities, module, self.variables)

    def elevation_function(self) -> Callable[[jax.Array], jax.Array]:
        """A compiled function from images of the chips' size to `elevation`."""
        if self.elevation_shape is None:
            raise InputError(f"{self.run} has not learned elevation; name a run that has")
        module = objective.make_model(self.config, self.elevation_shape)
        # Not the heads of the contrastive branches, which want two views.
        module = module.clone(projection=None, local_projection=None)
        return self._compiled(_elevation, module, self.variables, self.config.data.elevation_scale)

    def _compiled(self, function, module, variables, *more):
        value_range = tuple(self.config.data.value_range)

        def call(images):
            return function(module, variables, jnp.asarray(images), value_range, *more)

        return call

    def check_bands(self, bands: int, name: str) -> None:
        """Raises `InputError` if images of so many bands are not for this model."""
        if bands != self.image_shape[2]:
            raise InputError(f"{name} has {bands} bands; {self.run} takes {self.image_shape[2]}")

    def _in_batches(self, function, images):
        if images.ndim != 4 or not len(images):
            raise InputError(f"images have shape {images.shape}; [B, H, W, C] is needed")
        self.check_bands(images.shape[3], "an image")
        if not np.isfinite(images).all():
            raise InputError("an image has values that are not finite; leave it out, or fill them")
        # Batches are filled up to a power of two, so that few programs are compiled in all.
        size = min(_BATCH, 1 << (len(images) - 1).bit_length())
        parts = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            padded = np.resize(batch, (size, *batch.shape[1:]))
            parts.append(np.asarray(function(padded))[: len(batch)])
        return np.concatenate(parts)


def load(run: str | Path) -> Model:
    """The model of a finished run, from its last checkpoint.

    Raises:
      InputError: There is no such run, it is not finished, or its checkpoint is damaged.
    """
    run = Path(run)
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
    height, width, bands = saved.about["image_shape"]
    elevation_shape = None
    if "elevation_shape" in saved.about and config.objective.alpha > 0:
        elevation_shape = tuple(saved.about["elevation_shape"])
    return Model(
        run=run,
        config=config,
        variables=saved.variables,
        image_shape=(height, width, bands),
        elevation_shape=elevation_shape,
        step=saved.step,
        commit=saved.about["commit"],
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _features(encoder, variables, images, value_range):
    last = encoder.apply(variables, augment.normalize(images, value_range), train=False)[-1]
    return jnp.mean(last.astype(jnp.float32), axis=(1, 2))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _probabilities(module, variables, images, value_range):
    logits = module.apply(variables, augment.normalize(images, value_range), train=False)
    return jax.nn.softmax(logits)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _elevation(module, variables, images, value_range, scale):
    views = augment.normalize(images, value_range)[:, None]
    return module.apply(variables, views, train=False)["elevation"] * scale
