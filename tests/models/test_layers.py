"""The forms and the compiler's options for a CPU say what XLA's own say, gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from elev_ssl_jax import cpu
from elev_ssl_jax.models import layers
from elev_ssl_jax.models.resnet import ResNet18

rng = np.random.default_rng()


def convolution(channels, size, kernel, stride, padding):
    images = rng.normal(size=(4, *size, channels)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, channels, 6)).astype(np.float32)
    form = (stride, stride), ((padding, padding),) * 2
    how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return (
        lambda *args: layers.convolve(*args, *form, **how),
        lambda *args: lax.conv_general_dilated(*args, *form, **how),
        (images, weights),
    )


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
        (convolution, (3, (21, 20), 7, 2, 3)),  # the stem
        (convolution, (5, (9, 8), 3, 2, 1)),
        (convolution, (5, (9, 8), 1, 2, 0)),
        (convolution, (5, (9, 8), 1, 1, 0)),
        (convolution, (5, (9, 8), 3, 1, 1)),
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


def test_on_other_platforms_they_are_xlas_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    convolve, _, inputs = convolution(3, (8, 8), 3, 2, 1)
    text = str(jax.make_jaxpr(jax.grad(lambda *args: convolve(*args).sum(), 1))(*inputs))
    assert "custom_vjp" not in text
    assert "dot_general" not in text
    assert "reduce_window" in str(jax.make_jaxpr(layers.max_pool)(jnp.ones((1, 8, 8, 1))))


def test_a_number_that_is_none_is_not_lost():
    images = jnp.ones((1, 8, 8, 1)).at[0, 3, 4].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(images)).sum() == 2
