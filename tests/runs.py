"""Finished runs without the training."""

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax import config
from elev_ssl_jax.finetuning import loop as finetune
from elev_ssl_jax.pretraining import methods
from elev_ssl_jax.runtime import checkpoint
from elev_ssl_jax.runtime.train_state import TrainState


def save_run(folder, settings, shape, *, elevation=(11, 11), step=4, steps=4, seed=0, shapes=None):
    """A run's folder with random weights and statistics; its variables.

    `shape` is that of the images that the network sees, `shapes` those of several inputs.
    """
    known = shapes or {"image": shape, "elevation": elevation}
    if settings.task == "finetune":
        known = {name: known[name] for name in settings.data.inputs}
        model, images = finetune.make_model(settings, known, "cpu"), jnp.zeros((1, *shape))
    else:
        model, images = methods.make_model(settings, known, "cpu"), jnp.zeros((1, 3, *shape))
    variables = drawn(lambda: model.init(jax.random.key(0), images, train=True), seed)
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = TrainState(jnp.asarray(step), params, stats, opt_state={})
    about = checkpoint.describe(settings, steps=steps, shapes=known)
    with checkpoint.open_checkpoints(folder, 1) as checkpoints:
        checkpoint.save(checkpoints, state, about)
    return variables


def drawn(init, seed=0):
    """Variables as `init` makes them, with random weights and statistics, and nothing compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":  # as large as what it is multiplied by stays
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return (scale * rng.normal(size=leaf.shape)).astype(np.float32)
        low, high = {"scale": (0.8, 1.2), "var": (0.8, 1.2)}.get(name, (-0.2, 0.2))
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init))


def settings(head=None, *, width=0.125, low=0.0, high=6000.0):
    """Of a fine-tuning with `head`, or a pre-training, with a tiny encoder."""
    result = config.default() if head is None else config.fine_tuning(head)
    result.model.width = width
    if head is not None:
        result.finetune.num_classes = 2
    result.model.projection = (16, 8)
    result.data.value_range = (low, high)
    return result
