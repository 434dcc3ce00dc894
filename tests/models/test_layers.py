"""The form and the compiler's options for a CPU say what XLA's own say, gradients included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.models import layers
from elev_ssl_jax.models.plain_unet import PlainDecoder, PlainEncoder
from elev_ssl_jax.models.resnet import ResNet18
from elev_ssl_jax.models.unet import UNet
from elev_ssl_jax.runtime import cpu


def pooling(rng, size):
    images = rng.integers(0, 5, (4, *size, 6)).astype(np.float32)  # with ties
    return (
        layers.max_pool,
        lambda x: nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1))),
        (images,),
    )


def network(rng, train):
    images = rng.uniform(size=(6, 32, 32, 3)).astype(np.float32)
    model = ResNet18(width=0.125)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images, train=True)

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
def test_value_and_gradient_are_those_of_the_plain_form(make, arguments, rng):
    ours, plain, inputs = make(rng, *arguments)
    shape = jax.eval_shape(plain, *inputs).shape
    gradient = rng.normal(size=shape).astype(np.float32)

    def both(function):
        value, pull_back = jax.vjp(function, *inputs)
        return value, pull_back(gradient)

    tuned = jax.jit(lambda: both(ours), compiler_options=cpu.compiler_options("cpu"))()
    for a, b in zip(*map(jax.tree.leaves, (tuned, jax.jit(lambda: both(plain))())), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 13), (13, 25), (25, 33), (50, 100), (3, 2)])
def test_upsampling_is_pytorchs_nearest(old, new, rng):
    images = rng.normal(size=(2, old, old + 1, 3)).astype(np.float32)
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    wanted = torch.nn.functional.interpolate(theirs, (new, new + 2), mode="nearest")
    gradient = rng.normal(size=(2, new, new + 2, 3)).astype(np.float32)
    wanted.backward(torch.from_numpy(gradient).permute(0, 3, 1, 2))
    got, pull_back = jax.vjp(lambda x: layers.upsample(x, (new, new + 2)), images)
    np.testing.assert_array_equal(got, wanted.detach().permute(0, 2, 3, 1))
    np.testing.assert_allclose(pull_back(gradient)[0], theirs.grad.permute(0, 2, 3, 1), atol=4e-5)
    half = layers.upsample(jnp.asarray(images, jnp.bfloat16), (new, new + 2))
    np.testing.assert_array_equal(half, jnp.asarray(got, jnp.bfloat16))


@pytest.mark.parametrize(("old", "new"), [(4, 8), (7, 13), (25, 50), (1, 2), (1, 1), (3, 2)])
def test_bilinear_upsampling_is_pytorchs_with_aligned_corners(old, new, rng):
    images = rng.normal(size=(2, old, old + 1, 3)).astype(np.float32)
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    wanted = torch.nn.functional.interpolate(
        theirs, (new, new + 2), mode="bilinear", align_corners=True
    )
    gradient = rng.normal(size=(2, new, new + 2, 3)).astype(np.float32)
    wanted.backward(torch.from_numpy(gradient).permute(0, 3, 1, 2))
    got, pull_back = jax.vjp(lambda x: layers.upsample_bilinear(x, (new, new + 2)), images)
    np.testing.assert_allclose(got, wanted.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(pull_back(gradient)[0], theirs.grad.permute(0, 2, 3, 1), atol=4e-5)
    half = layers.upsample_bilinear(jnp.asarray(images, jnp.bfloat16), (new, new + 2))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), got, atol=0.02 * np.abs(images).max())


class PlainUNet(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        maps = PlainEncoder(width=0.125, name="encoder")(images, train=train)
        return PlainDecoder(2, (40, 40), name="decoder")(maps, train=train)


@pytest.mark.parametrize(
    "model", [UNet(num_classes=2, output_size=(40, 40), width=0.125), PlainUNet()]
)
def test_no_gradient_is_scattered(model):
    """A GPU adds what is scattered in whatever order it comes: no two runs would be the same."""
    images = jnp.ones((2, 40, 40, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0].sum()

    program = jax.jit(jax.grad(loss)).lower(shapes["params"], shapes["batch_stats"]).as_text()
    assert "scatter" not in program


def test_a_number_that_is_none_is_not_lost():
    images = jnp.ones((1, 8, 8, 1)).at[0, 3, 4].set(jnp.nan)
    assert jnp.isnan(layers.max_pool(images)).sum() == 2


def test_what_a_tpu_computes_is_what_others_do(monkeypatch, rng):
    """The form for a TPU, computed here, against that for others, gradient included."""
    ties = rng.integers(0, 4, (3, 7, 10, 2)).astype(np.float32)
    gradient = rng.normal(size=(3, 4, 5, 2)).astype(np.float32)

    def both():
        value, back = jax.vjp(layers.max_pool, ties)
        return value, *back(gradient)

    others = both()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *given, tpu, default: tpu(*given))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both(), others)
