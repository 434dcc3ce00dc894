"""The compiled step of pre-training: views, outputs, loss, exact gradient, update."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from elev_ssl_jax import augment
from elev_ssl_jax.pretraining.method import Batch, Method
from elev_ssl_jax.runtime import cpu, sharding
from elev_ssl_jax.runtime.train_state import TrainState


def make_train_step(
    config: Any,
    method: Method,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """A function of state, batch and seed that gives the next state and what to report.

    The state passed in is used up. The seed, of augmentation, is an argument so that runs which
    differ in it alone can share what is compiled.

    With `config.microbatch_size` no more than so many chips are augmented and seen by the
    network at a time, and the gradient is still that of the loss over the whole batch, in which
    every chip is a negative of every other (arXiv 2101.06983, section 3.2): the network runs
    once for the embeddings, the loss is differentiated at them, and the network runs again,
    microbatch by microbatch, to pass that on to its weights. BatchNorm uses the statistics of a
    microbatch, and its running averages take their mean over the batch.
    """
    parts = config.batch_size // (config.microbatch_size or config.batch_size)

    @functools.partial(
        jax.jit,
        donate_argnums=0,
        out_shardings=sharding.replicated(mesh),
        compiler_options=cpu.compiler_options(sharding.platform(mesh)),
    )
    def train_step(state: TrainState, batch: Batch, seed: int | jax.Array):
        def forward(params, chips):
            keys, batch = chips
            with jax.named_scope("views"):
                inputs, targets = method.views(keys, batch, True)
            outputs, updates = method.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                *inputs,
                train=True,
                mutable=["batch_stats"],
                rngs={"drop_path": keys[0]},
            )
            # The loss does without the inputs, which would fill the memory.
            return outputs, (targets, updates.get("batch_stats", {}))

        keys = augment.sample_keys(seed, state.step, config.batch_size)
        chips = keys, batch
        loss_gradient = jax.named_scope("loss")(jax.grad(method.loss, has_aux=True))
        if parts == 1:
            outputs, pull_back, (targets, batch_stats) = jax.vjp(
                lambda params: forward(params, chips), state.params, has_aux=True
            )
            at_outputs, terms = loss_gradient(outputs, targets)
            (gradient,) = pull_back(at_outputs)
        else:
            chips = _divide(chips, parts, mesh)
            outputs, (targets, batch_stats) = lax.map(
                functools.partial(forward, state.params), chips
            )
            batch_stats = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), batch_stats)
            at_outputs, terms = loss_gradient(*_unite((outputs, targets), mesh))

            def add_part(total, part):
                chips, at_outputs = part
                _, pull_back, _ = jax.vjp(
                    lambda params: forward(params, chips), state.params, has_aux=True
                )
                return jax.tree.map(jnp.add, total, pull_back(at_outputs)[0]), None

            zeros = jax.tree.map(jnp.zeros_like, state.params)
            gradient, _ = lax.scan(add_part, zeros, (chips, _divide(at_outputs, parts, mesh)))

        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            terms["gradient_norm"] = optax.tree.norm(gradient)
            terms["learning_rate"] = schedule(state.step)
            params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), terms

    return train_step


def _divide(batch, parts, mesh):
    """Arrays [B, ...] as microbatches [parts, B / parts, ...]; row r goes to number r % parts.

    So every device gives every microbatch as many of its rows, none of which has to move, and
    which rows make up a microbatch does not depend on the devices.
    """

    def divide(array):
        array = jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)
        return lax.with_sharding_constraint(array, sharding.split(mesh, axis=1))

    return jax.tree.map(divide, batch)


def _unite(microbatches, mesh):
    """The inverse of `_divide`."""

    def unite(array):
        array = jnp.moveaxis(array, 0, 1)
        array = array.reshape(-1, *array.shape[2:])
        return lax.with_sharding_constraint(array, sharding.split(mesh))

    return jax.tree.map(unite, microbatches)
