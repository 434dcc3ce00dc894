"""All that a training step changes."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Step count, model variables and optimizer state: what a checkpoint holds."""

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @classmethod
    def create(cls, variables: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """A state at step 0 from a model's initial variables."""
        params = variables["params"]
        return cls(
            jnp.zeros((), jnp.int32),
            params,
            variables.get("batch_stats", {}),  # a network without BatchNorm has none
            optimizer.init(params),
        )

    @property
    def variables(self) -> dict[str, Any]:
        """The model's variables, as `apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}
