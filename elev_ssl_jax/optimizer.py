"""The optax chain that `config.optimizer` describes."""

from typing import Any

import optax


def make_optimizer(
    settings: Any, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of `config.optimizer`, and its learning rate by step.

    The rate is constant or decays to zero over `total_steps`; the weight decay is either decoupled
    ("adamw") or part of the gradient ("adam").
    """
    if settings.schedule == "constant":
        schedule = optax.constant_schedule(settings.learning_rate)
    else:
        schedule = optax.cosine_decay_schedule(settings.learning_rate, total_steps)
    if settings.name == "adamw":
        return optax.adamw(schedule, weight_decay=settings.weight_decay), schedule
    l2 = optax.add_decayed_weights(settings.weight_decay)
    return optax.chain(l2, optax.adam(schedule)), schedule
