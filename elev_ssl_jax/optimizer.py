"""The optax chain that `config.optimizer` describes."""

from typing import Any

import optax


def make_optimizer(config: Any, total_steps: int) -> tuple[optax.GradientTransformation, Any]:
    """Adam with a cosine decay to zero over `total_steps`; returns it and its schedule.

    The weight decay is either decoupled ("adamw") or part of the gradient ("adam").
    """
    settings = config.optimizer
    schedule = optax.cosine_decay_schedule(settings.learning_rate, total_steps)
    if settings.name == "adamw":
        return optax.adamw(schedule, weight_decay=settings.weight_decay), schedule
    l2 = optax.add_decayed_weights(settings.weight_decay)
    return optax.chain(l2, optax.adam(schedule)), schedule
