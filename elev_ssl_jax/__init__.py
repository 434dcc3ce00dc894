"""Self-supervised pre-training of satellite-image encoders that also learn to predict elevation."""


def load(run):
    """A finished run's model, on NumPy images in sensor units; see `inference.Model`.

    Args:
      run: The run's folder.

    Raises:
      InputError: There is no run, or it is not finished.
    """
    from elev_ssl_jax import inference  # which brings in JAX and Orbax; data.chips does without

    return inference.load(run)
