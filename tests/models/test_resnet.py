import copy
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.convert.imported import encoder_variables
from elev_ssl_jax.models.resnet import ResNet18, ResNet34, ResNet50
from tests.models import torch_resnet

BLOCKS = {
    ResNet18: ((2, 2, 2, 2), torch_resnet.BasicBlock),
    ResNet34: ((3, 4, 6, 3), torch_resnet.BasicBlock),
    ResNet50: ((3, 4, 6, 3), torch_resnet.Bottleneck),
}


@functools.cache
def reference(encoder):
    """A PyTorch ResNet after some training, so to speak, and the same as our variables."""
    model = torch_resnet.randomize(torch_resnet.ResNet(*BLOCKS[encoder]))
    _, _, variables = encoder_variables(torch_resnet.tensors(model), "the reference")
    return model, variables


def forward(model, images, train):
    """All maps of a copy of the model, as [B, H, W, C]."""
    model = copy.deepcopy(model).train(train).to(images.dtype)
    with torch.no_grad():
        return [m.permute(0, 2, 3, 1).numpy() for m in model(images.permute(0, 3, 1, 2))]


def largest_difference(ours, theirs):
    """Over all maps, relative to the largest value of each."""
    for got, wanted in zip(ours, theirs, strict=True):
        assert got.shape == wanted.shape
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", [64, 100, 224])
@pytest.mark.parametrize("encoder", BLOCKS)
def test_features_equal_pytorch(rng, encoder, size):
    images = rng.random((3, size, size, 3), np.float32)
    model, variables = reference(encoder)
    got = jax.jit(partial(encoder().apply, train=False))(variables, images)
    assert largest_difference(got, forward(model, torch.from_numpy(images), False)) < 1e-5
    if size == 100:
        assert [m.shape[1] for m in got] == [50, 25, 13, 7, 4]


@pytest.mark.parametrize("size", [64, 100, 224])
@pytest.mark.parametrize("encoder", BLOCKS)
def test_training_features_equal_pytorch(rng, encoder, size):
    images = rng.random((3, size, size, 3), np.float32)
    model, variables = reference(encoder)
    step = jax.jit(partial(encoder().apply, train=True, mutable=["batch_stats"]))
    got, _ = step(variables, images)
    # Batch statistics amplify float32's rounding with the depth, PyTorch's too: 1e-4 in ResNet50.
    exact = forward(model, torch.from_numpy(images).double(), True)
    theirs = forward(model, torch.from_numpy(images), True)
    assert largest_difference(got, exact) < max(1e-5, 2 * largest_difference(theirs, exact))


def test_width_and_type():
    model = ResNet18(width=0.25, dtype=jnp.bfloat16)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, 64, 64, 4)), train=True)
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    maps = jax.eval_shape(
        lambda v: model.apply(v, jnp.ones((1, 64, 64, 4)), train=False), variables
    )
    assert [m.shape[-1] for m in maps] == [16, 16, 32, 64, 128]
    assert maps[-1].dtype == jnp.bfloat16
