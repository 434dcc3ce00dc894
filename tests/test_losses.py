import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elev_ssl_jax.losses import elevation_mse, nt_xent, relief_mse
from elev_ssl_jax.runtime import sharding


def reference_nt_xent(z1, z2, temperature, across=False):
    """Value and gradients in float64, by equations 1 and 2 and the chain rule."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    unit, rows, n = z / norm, len(z), len(z1)
    logits = unit @ unit.T / temperature
    np.fill_diagonal(logits, -np.inf)
    if across:
        logits[:n, :n] = logits[n:, n:] = -np.inf
    partner = (np.arange(rows) + n) % rows
    top = logits.max(axis=1, keepdims=True)
    softmax = np.exp(logits - top)
    total = softmax.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) + top[:, 0] - logits[np.arange(rows), partner])
    softmax /= total
    softmax[np.arange(rows), partner] -= 1
    unit_gradient = (softmax + softmax.T) @ unit / temperature / rows
    along = np.sum(unit_gradient * unit, axis=1, keepdims=True)
    gradient = (unit_gradient - along * unit) / norm
    return loss, gradient[:n], gradient[n:]


def assert_close(got, wanted):
    """To a relative error of 1e-5, or rounding where the expectation is zero."""
    error = np.linalg.norm(np.asarray(got, np.float64) - wanted)
    assert error <= 1e-5 * np.linalg.norm(wanted) + 1e-6


# As one program, since operation by operation takes four times as long to compile.
with_gradients = jax.jit(
    jax.value_and_grad(nt_xent, (0, 1)), static_argnames=("chunk_size", "across")
)
mse_with_gradient = jax.jit(jax.value_and_grad(elevation_mse), static_argnames="reduction")


@given(
    n=st.integers(1, 19),
    d=st.integers(2, 33),
    temperature=st.floats(0.05, 2),
    chunk_size=st.none() | st.integers(1, 40),
    across=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_nt_xent_equals_float64_reference(n, d, temperature, chunk_size, across, seed):
    rng = np.random.default_rng(seed)
    z1, z2 = rng.normal(size=(2, n, d)).astype(np.float32) * 3
    value, gradients = with_gradients(z1, z2, temperature, chunk_size=chunk_size, across=across)
    expected, *expected_gradients = reference_nt_xent(z1, z2, temperature, across)
    assert_close(value, expected)
    assert_close(gradients, expected_gradients)


def test_nt_xent_across_is_the_cross_entropy_of_rows_and_columns(rng):
    z1, z2 = rng.normal(size=(2, 9, 5)).astype(np.float32)
    unit1, unit2 = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    logits = (unit1 @ unit2.T / 0.1).astype(np.float64)
    rows = np.log(np.exp(logits).sum(axis=1)) - np.diag(logits)
    columns = np.log(np.exp(logits).sum(axis=0)) - np.diag(logits)
    wanted = (rows.mean() + columns.mean()) / 2
    loss, _ = with_gradients(z1, z2, 0.1, across=True)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


@given(
    valid=st.lists(st.booleans(), min_size=1, max_size=12),
    chunk_size=st.none() | st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_nt_xent_leaves_out_what_is_not_valid(valid, chunk_size, seed):
    valid = np.asarray(valid)
    z1, z2 = np.random.default_rng(seed).normal(size=(2, len(valid), 5)).astype(np.float32)
    value, gradients = with_gradients(z1, z2, chunk_size=chunk_size, valid=valid)
    if not valid.any():
        assert value == 0
        assert not np.any(gradients)
        return
    expected, *expected_gradients = reference_nt_xent(z1[valid], z2[valid], 0.5)
    assert_close(value, expected)
    assert_close([gradient[valid] for gradient in gradients], expected_gradients)
    assert not any(gradient[~valid].any() for gradient in gradients)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_nt_xent_takes_negatives_from_all_devices(rng, batch_mesh, chunk_size):
    z1, z2 = rng.normal(size=(2, 24, 16)).astype(np.float32)
    expected, *expected_gradients = reference_nt_xent(z1, z2, 0.5)
    compiled = jax.jit(
        jax.value_and_grad(lambda a, b: nt_xent(a, b, chunk_size=chunk_size), (0, 1))
    )
    for count in (1, 2, 8):
        sharded = jax.device_put((z1, z2), sharding.split(batch_mesh(count)))
        value, gradients = compiled(*sharded)
        assert_close(value, expected)
        assert_close(gradients, expected_gradients)


def test_nt_xent_gathers_embeddings_and_no_logits(batch_mesh):
    n, d = 64, 16
    split = sharding.split(batch_mesh(8))
    z = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=split)
    program = jax.jit(jax.value_and_grad(nt_xent)).lower(z, z).compile().as_text()
    gathered = [line for line in program.splitlines() if " all-gather" in line and "=" in line]
    assert gathered
    for line in gathered:
        assert f"f32[{2 * n},{2 * n}]" not in line


def test_nt_xent_of_65536_pairs_fits_into_2_gib():
    z = jax.ShapeDtypeStruct((65536, 128), jnp.float32)
    step = jax.jit(jax.value_and_grad(functools.partial(nt_xent, chunk_size=512), (0, 1)))
    memory = step.lower(z, z).compile().memory_analysis()
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    assert min(parts) > 0
    assert sum(parts) < 2**30


def test_nt_xent_is_float32_for_bfloat16_and_finite_for_zeros(rng):
    z = jnp.asarray(rng.normal(size=(2, 6, 4)), jnp.bfloat16).at[:, 0].set(0)
    value, gradient = with_gradients(*z)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_nt_xent_refuses_what_it_cannot_pair():
    with pytest.raises(ValueError, match="N, D"):
        nt_xent(jnp.ones((3, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="chunk_size"):
        nt_xent(jnp.ones((3, 2)), jnp.ones((3, 2)), chunk_size=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_elevation_mse_equals_float64_reference(rng, reduction):
    predicted, target = rng.normal(size=(2, 5, 7, 6)).astype(np.float32)
    target[rng.random(target.shape) < 0.3] = np.nan
    value, gradient = mse_with_gradient(predicted, target, reduction=reduction)
    error = predicted.astype(np.float64) - target
    count = np.isfinite(target).sum() if reduction == "mean" else 5
    np.testing.assert_allclose(value, np.nansum(error**2) / count, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * np.nan_to_num(error) / count, rtol=1e-5)


def test_missing_elevation_has_no_loss_and_no_gradient():
    missing = jnp.full((2, 3, 3), jnp.nan)
    value, gradient = jax.value_and_grad(elevation_mse)(jnp.ones((2, 3, 3)), missing)
    assert value == 0
    assert not gradient.any()


def test_elevation_mse_refuses_other_shapes_and_reductions():
    with pytest.raises(ValueError, match="differ"):
        elevation_mse(jnp.ones((2, 3, 3)), jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="median"):
        elevation_mse(jnp.ones((2, 3, 3)), jnp.ones((2, 3, 3)), reduction="median")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_relief_loss_equals_a_loop_and_is_blind_to_the_level(rng, reduction):
    target = rng.normal(size=(5, 4, 3)).astype(np.float32)
    predicted = rng.normal(size=target.shape).astype(np.float32)
    target[rng.random(target.shape) < 0.3] = np.nan
    target[1] = np.nan
    squares, level, count = 0.0, 0.0, 0
    for error in predicted.astype(np.float64) - target:
        cells = error[~np.isnan(error)]
        if len(cells):
            squares += np.sum((cells - cells.mean()) ** 2)
            level += len(cells) * cells.mean() ** 2
            count += len(cells)
    divisor = count if reduction == "mean" else 5
    relief = jax.jit(jax.value_and_grad(functools.partial(relief_mse, reduction=reduction)))
    loss, gradient = relief(predicted, target)
    assert_close(loss, squares / divisor)
    whole, _ = mse_with_gradient(predicted, target, reduction=reduction)
    assert_close(loss + level / divisor, whole)
    moved = predicted + rng.normal(size=(5, 1, 1)).astype(np.float32)
    np.testing.assert_allclose(relief(moved, target)[0], loss, rtol=1e-4)
    assert np.all(gradient[np.isnan(target)] == 0)
    assert relief(predicted[1:2], target[1:2])[0] == 0
    with pytest.raises(ValueError, match="differ"):
        relief_mse(predicted[1:], target)
