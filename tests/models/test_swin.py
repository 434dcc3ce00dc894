from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.convert import names
from elev_ssl_jax.models.swin import DropPath, Swin
from tests.models import torch_swin

SMALL = {"depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}
SMALL_IN_TORCH = {**SMALL, "channels": 32}


def variables_of(model, encoder, bands):
    """A reference's weights as ours."""
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    images = jnp.zeros((1, 32, 32, bands))
    template = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False))
    template = {part: {"encoder": tree} for part, tree in template.items()}
    ours = names.from_torch(tensors, template, names.swin_key, "the reference")
    back = names.to_torch(ours, names.swin_key, 0)
    assert back.keys() == tensors.keys()
    return {part: tree["encoder"] for part, tree in ours.items()}


# Sides of one window and of several, that 4, 7 and 2 divide and that they don't.
@pytest.mark.parametrize("size", [(56, 56), (50, 91), (32, 130)])
def test_maps_and_gradients_equal_pytorch(rng, size):
    model = torch_swin.randomize(torch_swin.Swin(2, **SMALL_IN_TORCH))
    encoder = Swin(**SMALL)
    variables = variables_of(model, encoder, 2)
    images = rng.normal(size=(2, *size, 2)).astype(np.float32)
    given = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    wanted = model(given)
    # What a decoder would send back: something else for each map and place.
    weights = [rng.normal(size=tuple(m.shape)).astype(np.float32) for m in wanted]
    sum((m * torch.from_numpy(w)).sum() for m, w in zip(wanted, weights, strict=True)).backward()

    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def value(variables, images):
        maps = encoder.apply(variables, images, train=False)
        return sum((m * w).sum() for m, w in zip(maps, weights, strict=True)), maps

    (_, maps), (gradient, to_images) = jax.jit(value)(variables, images)
    for got, theirs in zip(maps, wanted, strict=True):
        theirs = theirs.detach().numpy()
        assert got.shape == theirs.shape
        np.testing.assert_allclose(got, theirs, atol=1e-4 * np.abs(theirs).max())
    theirs = given.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(to_images, theirs, atol=1e-4 * np.abs(theirs).max())
    gradient = names.to_torch({"params": {"encoder": gradient["params"]}}, names.swin_key, 0)
    for name, parameter in model.named_parameters():
        theirs = parameter.grad.numpy()
        np.testing.assert_allclose(
            gradient[name], theirs, atol=1e-4 * max(np.abs(theirs).max(), 1e-3), err_msg=name
        )


@pytest.mark.parametrize(("bands", "count"), [(2, 27_517_818), (13, 27_534_714)])
def test_swin_t_has_the_papers_parameters_and_maps(bands, count):
    images = jnp.ones((1, 224, 224, bands))
    maps, variables = jax.eval_shape(
        lambda: Swin().init_with_output(jax.random.key(0), images, train=False)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
    assert [m.shape[1:] for m in maps] == [
        *((56, 56, 96), (28, 28, 192), (14, 14, 384), (7, 7, 768)),
    ]


def test_width_and_type():
    encoder = Swin(width=0.25, dtype=jnp.bfloat16)
    maps, variables = jax.eval_shape(
        lambda: encoder.init_with_output(jax.random.key(0), jnp.ones((1, 64, 64, 4)), train=False)
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert [m.shape[-1] for m in maps] == [24, 48, 96, 192]
    assert {m.dtype for m in maps} == {jnp.dtype(jnp.bfloat16)}


def test_paths_are_dropped_by_sample_and_the_mean_stays():
    drop, x = DropPath(0.25), jnp.ones((4000, 2, 3))
    got = drop.apply({}, x, train=True, rngs={"drop_path": jax.random.key(0)})
    by_sample = np.unique(np.asarray(got).reshape(4000, -1), axis=1)
    assert by_sample.shape[1] == 1
    np.testing.assert_allclose(np.unique(by_sample), [0, 4 / 3], rtol=1e-6)
    assert abs(got.mean() - 1) < 0.03
    assert (drop.apply({}, x, train=False) == x).all()


def test_no_gradient_is_scattered():
    encoder = Swin(**SMALL, drop_path=0.0)
    images = jnp.ones((1, 64, 64, 2))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), images, train=False))

    def loss(variables):
        return encoder.apply(variables, images, train=True)[-1].sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(variables))
    assert "scatter" not in text
    assert "gather" not in text
