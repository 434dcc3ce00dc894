import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax.models.batch_norm import BatchNorm, Layout


def test_each_view_is_normalised_by_itself(rng):
    # A mean far above the spread, where E[x^2] - E[x]^2 would fail.
    spread = np.array([1, 4, 9])[:, None, None, None]
    views = (rng.normal(size=(6, 3, 4, 4, 5)) * spread + 300).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), views[:, 0], train=True)
    # In parts of two samples, in each of which the views stand one after the other.
    apart = views.reshape(3, 2, 3, 4, 4, 5).swapaxes(1, 2)
    together, updates = norm.apply(
        variables,
        apart.reshape(18, 4, 4, 5),
        train=True,
        layout=Layout(3, 3),
        mutable=["batch_stats"],
    )
    together = together.reshape(apart.shape).swapaxes(1, 2).reshape(views.shape)
    means, variances = [], []
    for i in range(3):
        alone, _ = norm.apply(variables, views[:, i], train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(together[:, i], alone, atol=2e-5)
        flat = views[:, i].reshape(-1, 5).astype(np.float64)
        wanted = (views[:, i] - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        np.testing.assert_allclose(alone, wanted, atol=1e-3)
        means.append(flat.mean(0))
        variances.append(flat.var(0, ddof=1))  # the running one is unbiased, as PyTorch's is
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * np.mean(means, 0), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradient_are_those_of_the_formula_in_float64(rng, dtype):
    layout, shape = Layout(2, 3), (24, 5, 4, 7)
    x = jnp.asarray(rng.normal(1.5, 2, shape), dtype)
    variables = {
        "params": {"scale": rng.normal(1, 0.3, 7), "bias": rng.normal(size=7)},
        "batch_stats": {"mean": np.zeros(7), "var": np.ones(7)},
    }
    variables = jax.tree.map(jnp.float32, variables)
    weights = rng.normal(size=shape)

    def loss(params, x):
        parts = {**variables, "params": params}
        y, _ = BatchNorm(dtype).apply(parts, x, train=True, layout=layout, mutable=["batch_stats"])
        return jnp.sum(y * jnp.asarray(weights, dtype), dtype=jnp.float32), y

    (_, y), got = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], x)

    def exact(params, x):
        by_view = x.reshape(2, 3, 4, 5, 4, 7)
        mean = by_view.mean((0, 2, 3, 4), keepdims=True)
        var = ((by_view - mean) ** 2).mean((0, 2, 3, 4), keepdims=True)
        y = (by_view - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        return jnp.sum(y.reshape(shape) * weights), y.reshape(shape)

    with jax.enable_x64():
        given = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), variables)
        wide = jnp.asarray(np.asarray(x, np.float64))
        weights = np.asarray(jnp.asarray(weights, dtype), np.float64)
        in_float64 = jax.jit(jax.value_and_grad(exact, (0, 1), has_aux=True))
        (_, wanted_y), wanted = in_float64(given["params"], wide)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2

    def check(one, other):
        other = np.asarray(other, np.float64)
        error = np.abs(np.asarray(one, np.float64) - other).max()
        assert error < tolerance * np.abs(other).max()

    check(y, wanted_y)
    jax.tree.map(check, got, wanted)


@pytest.mark.parametrize(("parts", "groups"), [(1, 4), (2, 4), (4, 4), (4, 2), (8, 2)])
def test_groups_are_stretches_of_the_batch_whatever_the_parts(rng, parts, groups):
    views = rng.normal(1, 2, (16, 2, 3, 3, 5)).astype(np.float32)  # [B, V, ...]
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), views[:, 0], train=True)
    each = 16 // parts
    stacked = views.reshape(parts, each, 2, 3, 3, 5).swapaxes(1, 2).reshape(32, 3, 3, 5)
    got, updates = norm.apply(
        variables, stacked, train=True, layout=Layout(parts, 2, groups), mutable=["batch_stats"]
    )
    got = np.asarray(got).reshape(parts, 2, each, 3, 3, 5).swapaxes(1, 2).reshape(views.shape)
    by_group = views.reshape(groups, -1, *views.shape[1:]).astype(np.float64)
    mean = by_group.mean((1, 3, 4), keepdims=True)
    var = by_group.var((1, 3, 4), keepdims=True)
    wanted = (by_group - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(got, wanted.reshape(views.shape), atol=1e-5)
    count = 16 // groups * 9
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.mean((0, 1, 2, 3, 4)), rtol=1e-4)
    unbiased = var.mean((0, 1, 2, 3, 4)) * count / (count - 1)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * unbiased, rtol=1e-4)
