"""The losses of pre-training (arXiv 2304.06857, sections 2.1 and 3.1)."""

import jax
import jax.numpy as jnp
from jax import lax

# Stands for minus infinity, but finite: a chunk whose every column is masked then has a
# gradient of zero rather than NaN.
_MASKED = -1e9


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float = 0.5,
    *,
    chunk_size: int | None = None,
    valid: jax.Array | None = None,
) -> jax.Array:
    """NT-Xent on cosine similarity (equations 1 and 2): each of 2N rows against its positive.

    The arrays are global views: under `jit` with a sharded batch the 2(N - 1) negatives of a row
    are those of all devices, and the gradient through them is exact.

    Args:
      z1: Embeddings of one view, float [N, D].
      z2: Embeddings of the other view, float [N, D]; row i is the same sample as row i of `z1`.
      temperature: Divides the similarities.
      chunk_size: Columns of the similarity matrix held at a time. Memory is then
        O(N * chunk_size), forward and backward, rather than O(N^2).
      valid: bool [N], the samples that take part, as rows and as negatives; None is all.

    Returns:
      The mean over the rows that take part, a float32 scalar whatever the input type; zero if
      none does.

    Raises:
      ValueError: `z1` and `z2` are not two [N, D] arrays of one shape, or chunk_size < 1.
    """
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"nt_xent takes two [N, D] arrays, not {z1.shape} and {z2.shape}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")

    # Views side by side rather than end to end: row 2i is z1[i] and row 2i + 1 is z2[i], so that
    # a batch sharded over devices stays where it is and only the [2N, D] keys are gathered.
    z = jnp.stack([_unit_rows(z1), _unit_rows(z2)], axis=1)
    positive = jnp.sum(z[:, 0] * z[:, 1], axis=-1) / temperature
    z = z.reshape(-1, z.shape[-1])
    rows = len(z)
    takes_part = jnp.ones(rows, bool) if valid is None else jnp.repeat(valid, 2)

    def log_sum_exp(keys, columns, allowed):
        logits = jnp.matmul(z, keys.T, precision=lax.Precision.HIGHEST) / temperature
        allowed &= jnp.arange(rows)[:, None] != columns
        return jax.nn.logsumexp(jnp.where(allowed, logits, _MASKED), axis=-1)

    if chunk_size is None or chunk_size >= rows:
        denominator = log_sum_exp(z, jnp.arange(rows), takes_part)
    else:
        chunks = -(-rows // chunk_size)
        padding = chunks * chunk_size - rows
        keys = jnp.pad(z, ((0, padding), (0, 0))).reshape(chunks, chunk_size, -1)
        columns = jnp.arange(chunks * chunk_size).reshape(chunks, chunk_size)
        allowed = jnp.pad(takes_part, (0, padding)).reshape(chunks, chunk_size)

        @jax.checkpoint  # the backward pass computes a chunk's logits again instead of keeping them
        def add_chunk(total, chunk):
            return jnp.logaddexp(total, log_sum_exp(*chunk)), None

        denominator, _ = lax.scan(add_chunk, jnp.full(rows, _MASKED), (keys, columns, allowed))
    row_losses = jnp.where(takes_part, denominator - jnp.repeat(positive, 2), 0)
    return jnp.sum(row_losses) / jnp.maximum(jnp.sum(takes_part), 1)


def _unit_rows(z: jax.Array) -> jax.Array:
    """Rows scaled to unit length in float32; a zero row stays zero and passes no NaN back."""
    z = z.astype(jnp.float32)
    return z * lax.rsqrt(jnp.maximum(jnp.sum(z**2, axis=-1, keepdims=True), 1e-12))


def elevation_mse(predicted: jax.Array, target: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """Squared error between predicted and true elevation; cells without elevation are left out.

    Args:
      predicted: [B, H, W] in normalised units (metres / `data.elevation_scale`).
      target: [B, H, W], NaN where the elevation is missing: no loss and no gradient there.
      reduction: "mean" over the cells that have an elevation (the reference code), or "sum" over
        a sample's cells and mean over the batch (equation 5).

    Returns:
      A float32 scalar; zero if no cell has an elevation.

    Raises:
      ValueError: The shapes differ, or the reduction is unknown.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"prediction {predicted.shape} and target {target.shape} differ")
    known = ~jnp.isnan(target)
    error = jnp.where(known, predicted.astype(jnp.float32) - jnp.where(known, target, 0), 0)
    total = jnp.sum(error**2)
    if reduction == "mean":
        return total / jnp.maximum(jnp.sum(known), 1)
    if reduction == "sum":
        return total / len(target)
    raise ValueError(f'reduction is {reduction!r}; it must be "mean" or "sum"')
