"""What makes a pre-training method: all that looks into a batch, and nothing else does."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

Batch = Mapping[str, jax.Array]  # by the names of the data's features, [B, ...] each


class Views(NamedTuple):
    """A batch as it is learned from."""

    inputs: tuple[Any, ...]  # what the model is called with
    targets: Any  # what the loss compares its outputs with


class Method(NamedTuple):
    """Three pure functions of the configuration; a batch goes through them in this order.

    Step, microbatches, sharding, checkpoints and scores serve any method. Arrays have the batch on
    their first axis. Of the outputs, `features` [B, F] (of the chip as it is, where `train` is
    False), `embeddings` [B, 2, D] (of a pair that belongs together) and `elevation` [B, h, w] (in
    units of `config.data.elevation_scale`) are scored, those that there are.

    Attributes:
      reads: The features of the data that `views` needs.
      views: Of a key for each chip, a batch and `train`: augmented views, or, for scores, the
        chip as it is where that matters.
      model: Called with the inputs and `train`; returns a dictionary of outputs. Its encoder lies
        under `encoder`.
      loss: Of outputs and targets: the loss, and what to report, by name.
    """

    reads: tuple[str, ...]
    views: Callable[..., Views]
    model: nn.Module
    loss: Callable[[dict[str, jax.Array], Any], tuple[jax.Array, dict[str, jax.Array]]]
