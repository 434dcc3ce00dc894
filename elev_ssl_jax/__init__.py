"""Self-supervised pre-training of satellite-image encoders that also learn to predict elevation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elev_ssl_jax.inference.model import Model

__version__ = "0.2.0"


def load(run: str | Path) -> Model:
    """A finished run's model, on NumPy images in sensor units; see `inference.Model`.

    Args:
      run: The run's folder.

    Raises:
      InputError: There is no run, or it is not finished.
    """
    from elev_ssl_jax.inference import (
        model,  # which brings in JAX and Orbax; data.chips does without
    )

    return model.load(run)
