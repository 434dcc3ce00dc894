"""A method: Barlow Twins (arXiv 2103.03230) in the place of NT-Xent, with elevation beside it."""

import jax.numpy as jnp

from elev_ssl_jax.pretraining import elevation


def barlow_twins(z1, z2, redundancy=5e-3):
    """How far the correlations of two views' embeddings, [B, D] each, are from the identity."""
    z1, z2 = ((z - z.mean(axis=0)) / (z.std(axis=0) + 1e-6) for z in (z1, z2))
    correlations = z1.T @ z2 / len(z1)
    own = jnp.diag(correlations)
    others = jnp.sum(correlations**2) - jnp.sum(own**2)
    return jnp.sum((1 - own) ** 2) + redundancy * others


def make(config, sample, mesh):
    """As `pretraining.methods.make`: views and model of SimCLR+Elevation, and a loss of our own."""
    simclr = elevation.make(config, sample, mesh)

    def loss(outputs, targets):
        z, alpha = outputs["embeddings"], config.objective.alpha
        terms = {"barlow_loss": barlow_twins(z[:, 0], z[:, 1])}
        whole = (1 - alpha) * terms["barlow_loss"]
        if targets.elevation is not None:
            error, more = elevation.elevation_loss(config, outputs["elevation"], targets.elevation)
            whole, terms = whole + alpha * error, terms | more
        return whole, {"loss": whole, **terms}

    return simclr._replace(loss=loss)
