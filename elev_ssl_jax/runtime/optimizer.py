"""The optax chain that `config.optimizer` describes."""

import math
from typing import Any

import jax
import optax

# A learning rate is for batches of so many, which is what the paper has.
_BASE_BATCH_SIZE = 256


def make_optimizer(
    settings: Any, *, epochs: int, steps_per_epoch: int, batch_size: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of `config.optimizer`, and its learning rate by step.

    The rate may grow with the batch size, linearly or with its square root ("sqrt"). It rises from
    zero over the first `warmup_epochs`, and then stays, if need be until `drop_epoch`, from when on
    it is a tenth, or decays to zero. The weight decay is
    decoupled ("adamw") or part of the gradient ("adam", and "lars", arXiv 1708.03888, whose decay
    and whose scaling by the size of a layer leave biases and BatchNorm alone). What is under
    `encoder` in the parameters then moves `encoder_scale` times as far.
    """
    ratio = batch_size / _BASE_BATCH_SIZE
    scale = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[settings.scaling]
    peak = settings.learning_rate * scale
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if settings.schedule == "constant":
        schedule = optax.constant_schedule(peak)
    else:
        schedule = optax.cosine_decay_schedule(peak, max(1, epochs * steps_per_epoch - warmup))
    if settings.drop_epoch:
        drops = optax.constant_schedule(0.1 * peak)
        schedule = optax.join_schedules(
            [schedule, drops], [settings.drop_epoch * steps_per_epoch - warmup]
        )
    if warmup:
        schedule = optax.join_schedules(
            [optax.linear_schedule(0, peak, warmup), schedule], [warmup]
        )

    decay = settings.weight_decay
    if settings.name == "lars":
        optimizer = optax.lars(
            schedule, decay, weight_decay_mask=_kernels, trust_ratio_mask=_kernels, momentum=0.9
        )
    elif settings.name == "adamw":
        optimizer = optax.adamw(schedule, weight_decay=decay)
    else:
        optimizer = optax.chain(optax.add_decayed_weights(decay), optax.adam(schedule))
    if settings.encoder_scale != 1:
        optimizer = optax.chain(
            optimizer, optax.masked(optax.scale(settings.encoder_scale), _of_encoder)
        )
    return optimizer, schedule


def rate_change(config: Any, then: int, steps_per_epoch: int, step: int) -> str:
    """What becomes of the learning rate at `step` where `epochs` has changed from `then`.

    The schedule is that of the new `epochs` throughout, so that a rate which had decayed rises
    again: the run is not what it would be if it had been asked for so many from the start.
    """
    rates = [
        make_optimizer(
            config.optimizer,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            batch_size=config.batch_size,
        )[1](step)
        for epochs in (then, config.epochs)
    ]
    said = f"epochs was {then} and is {config.epochs}"
    if rates[0] == rates[1]:
        return f"{said}; the learning rate stays as it was"
    return (
        f"{said}: the learning rate changes here from {rates[0]:.2g} to {rates[1]:.2g}; this is "
        f"not the same run as one of {config.epochs} epochs from the start"
    )


def _of_encoder(params):
    return {
        part: jax.tree.map(lambda _, its=part == "encoder": its, tree)
        for part, tree in params.items()
    }


def _kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
