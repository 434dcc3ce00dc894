"""The form and the compiler's options for a CPU say what XLA's own say, gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import cpu
from elev_ssl_jax.models import layers
from elev_ssl_jax.models.resnet import ResNet18

rng = np.random.default_rng()


def pooling(size):
    images = rng.integers(0, 5, (4, *size, 6)).astype(np.float32)  # with ties
    return (
        layers.max_pool,
        lambda x: nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))),
        (images,),
    )


def network(train):
    images = rng.uniform(size=(6, 32, 32, 3)).astype(np.float32)
    model = ResNet18(width=0.125)
    variables = model.init(jax.random.key(0), images, train=True)

    def features(params, images):
        maps, _ = model.apply(
            {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
        )
        return maps[0]  # deeper, training mode amplifies the rounding itself

    return features, features, (variables["params"], images)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (pooling, ((9, 8),)),
        (network, (False,)),
        (network, (True,)),
    ],
)
def test_value_and_gradient_are_those_of_the_plain_form(make, arguments):
    ours, plain, inputs = make(*arguments)
    shape = jax.eval_shape(plain, *inputs).shape
    gradient = rng.normal(size=shape).astype(np.float32)

    def both(function):
        value, pull_back = jax.vjp(function, *inputs)
        return value, pull_back(gradient)

    tuned = jax.jit(lambda: both(ours), compiler_options=cpu.compiler_options())()
    for a, b in zip(*map(jax.tree.leaves, (tuned, jax.jit(lambda: both(plain))())), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_on_other_platforms_it_is_xlas_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "reduce_window" in str(jax.make_jaxpr(layers.max_pool)(jnp.ones((1, 8, 8, 1))))


def test_a_number_that_is_none_is_not_lost():
    images = jnp.ones((1, 8, 8, 1)).at[0, 3, 4].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(images)).sum() == 2
