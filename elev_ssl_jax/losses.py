"""The losses of pre-training (arXiv 2304.06857, sections 2.1 and 3.1)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Stands for minus infinity, but finite: rows that are masked throughout then give zeros, not NaN.
_MASKED = -1e9


def nt_xent(
    z1: jax.Array,
    z2: jax.Array,
    temperature: float = 0.5,
    *,
    chunk_size: int | None = None,
    valid: jax.Array | None = None,
    across: bool = False,
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
      across: Whether a row's negatives are the N - 1 of the other view alone: the symmetric InfoNCE
        of alignment between sensors (Windsor et al., arXiv 2107.06652).

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
    z = jnp.stack([_unit_rows(z1), _unit_rows(z2)], axis=1) / jnp.sqrt(temperature)
    positive = jnp.repeat(jnp.sum(z[:, 0] * z[:, 1], axis=-1), 2)
    z = z.reshape(-1, z.shape[-1])
    takes_part = jnp.ones(len(z), bool) if valid is None else jnp.repeat(valid, 2)
    denominator = _log_denominator(min(chunk_size or len(z), len(z)), across, z, takes_part)
    row_losses = jnp.where(takes_part, denominator - positive, 0)
    return jnp.sum(row_losses) / jnp.maximum(jnp.sum(takes_part), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_denominator(
    chunk_size: int, across: bool, z: jax.Array, takes_part: jax.Array
) -> jax.Array:
    """log sum_j exp(z_i . z_j) over the rows j != i that take part, for each row i of z [R, D].

    If `across`, over those that are of the other view.
    At most [R, chunk_size] similarities exist at a time, forward and backward.
    """

    def add_chunk(total, chunk):
        logits = _similarities(across, z, takes_part, *chunk)
        return jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=-1)), None

    chunks = _split(chunk_size, z, takes_part, jnp.arange(len(z)))
    return lax.scan(add_chunk, jnp.full(len(z), _MASKED), chunks)[0]


def _log_denominator_forward(chunk_size, across, z, takes_part):
    denominator = _log_denominator(chunk_size, across, z, takes_part)
    return denominator, (z, takes_part, denominator)


def _log_denominator_backward(chunk_size, across, saved, gradient):
    # A row is part of its own denominator, and one of the others in everyone else's. Similarities
    # are symmetric, so the same chunk of them gives both, and what a row's gradient needs comes to
    # that row: nothing is summed over devices, and nothing but z is kept for the way back.
    z, takes_part, denominator = saved

    def add_chunk(total, chunk):
        *chunk, chunk_denominator, chunk_gradient = chunk
        logits = _similarities(across, z, takes_part, *chunk)
        own = gradient[:, None] * jnp.exp(logits - denominator[:, None])
        others = chunk_gradient * jnp.exp(logits - chunk_denominator)
        return total + _matmul(own + others, chunk[0]), None

    arrays = (z, takes_part, jnp.arange(len(z)), denominator, gradient)
    return lax.scan(add_chunk, jnp.zeros_like(z), _split(chunk_size, *arrays))[0], None


_log_denominator.defvjp(_log_denominator_forward, _log_denominator_backward)


def _similarities(across, z, takes_part, keys, keys_take_part, columns):
    """z . keys [R, chunk], masked for a row with itself and for rows that don't take part."""
    rows = jnp.arange(len(z))[:, None]
    apart = rows % 2 != columns % 2 if across else rows != columns
    mask = takes_part[:, None] & keys_take_part & apart
    return jnp.where(mask, _matmul(z, keys.T), _MASKED)


def _matmul(a, b):
    """Of float32, to 1e-5. A TPU does with three products of bfloat16 rather than six."""
    precise = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    enough = functools.partial(jnp.matmul, precision=lax.Precision.HIGH)
    return lax.platform_dependent(a, b, tpu=enough, default=precise)


def _split(size, *arrays):
    """Arrays [R, ...] as [chunks, size, ...], filled up with zeros (which take no part)."""
    count = -(-len(arrays[0]) // size)
    padded = (jnp.pad(a, ((0, count * size - len(a)), *[(0, 0)] * (a.ndim - 1))) for a in arrays)
    return tuple(a.reshape(count, size, *a.shape[1:]) for a in padded)


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
    error, known = _elevation_error(predicted, target)
    return _reduced(error, known, reduction)


def relief_mse(predicted: jax.Array, target: jax.Array, *, reduction: str = "mean") -> jax.Array:
    """The part of `elevation_mse` that is left once each sample's mean error is taken away.

    How high a sample lies as a whole does not matter to it, only the shape of its ground. Takes,
    returns and raises what `elevation_mse` does, and is never larger.
    """
    error, known = _elevation_error(predicted, target)
    count = jnp.maximum(jnp.sum(known, axis=(1, 2), keepdims=True), 1)
    level = jnp.sum(error, axis=(1, 2), keepdims=True) / count
    return _reduced(jnp.where(known, error - level, 0), known, reduction)


def _elevation_error(predicted, target):
    """Predicted less true elevation, 0 where that is missing, and where it is known."""
    if predicted.shape != target.shape:
        raise ValueError(f"prediction {predicted.shape} and target {target.shape} differ")
    known = ~jnp.isnan(target)
    error = jnp.where(known, predicted.astype(jnp.float32) - jnp.where(known, target, 0), 0)
    return error, known


def _reduced(error, known, reduction):
    total = jnp.sum(error**2)
    if reduction == "mean":
        return total / jnp.maximum(jnp.sum(known), 1)
    if reduction == "sum":
        return total / len(error)
    raise ValueError(f'reduction is {reduction!r}; it must be "mean" or "sum"')
