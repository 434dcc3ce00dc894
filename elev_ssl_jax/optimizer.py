"""The optax chain that `config.optimizer` describes."""

from typing import Any

import optax


def make_optimizer(config: Any, total_steps: int) -> tuple[optax.GradientTransformation, Any]:
    """AdamW with a cosine decay to zero over `total_steps`; returns it and its schedule."""
    schedule = optax.cosine_decay_schedule(config.optimizer.learning_rate, total_steps)
    return optax.adamw(schedule, weight_decay=config.optimizer.weight_decay), schedule
