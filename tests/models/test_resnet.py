import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.models.resnet import BatchNorm, ResNet18, ResNet34, ResNet50
from tests.models import torch_resnet

BLOCKS = {
    ResNet18: ((2, 2, 2, 2), torch_resnet.BasicBlock),
    ResNet34: ((3, 4, 6, 3), torch_resnet.BasicBlock),
    ResNet50: ((3, 4, 6, 3), torch_resnet.Bottleneck),
}


@functools.cache
def reference(encoder):
    """A PyTorch ResNet with random weights and running statistics."""
    model = torch_resnet.ResNet(*BLOCKS[encoder])
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "bn" in name or "downsample.1" in name:
                if name.endswith("running_var") or name.endswith("weight"):
                    value.uniform_(0.5, 1.5)
                elif value.dtype.is_floating_point:
                    value.uniform_(-0.5, 0.5)
    return model


def largest_difference(ours, theirs):
    """Between all maps, relative to the largest value of each."""
    worst = 0
    for got, wanted in zip(ours, theirs, strict=True):
        wanted = wanted.permute(0, 2, 3, 1).numpy()
        assert got.shape == wanted.shape
        worst = max(worst, np.abs(got - wanted).max() / max(1, np.abs(wanted).max()))
    return worst


@pytest.mark.parametrize(
    ("encoder", "size"), [(ResNet18, 64), (ResNet18, 100), (ResNet34, 64), (ResNet50, 64)]
)
def test_forward_equals_pytorch(rng, encoder, size):
    images = rng.random((2, size, size, 3), np.float32)
    model = reference(encoder).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    got = jax.jit(partial(encoder().apply, train=False))(torch_resnet.to_flax(model), images)
    assert largest_difference(got, expected) < 1e-4
    if size == 100:
        assert [m.shape[1] for m in got] == [50, 25, 13, 7, 4]


@pytest.mark.parametrize("encoder", [ResNet18, ResNet50])
def test_training_forward_equals_pytorch(rng, encoder):
    images = rng.random((4, 64, 64, 3), np.float32)
    model = reference(encoder)
    step = jax.jit(partial(encoder().apply, train=True, mutable=["batch_stats"]))
    got, _ = step(torch_resnet.to_flax(model), images)
    with torch.no_grad():
        expected = model.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert largest_difference(got, expected) < 1e-3


def test_each_view_is_normalised_by_itself(rng):
    # A mean far above the spread, where E[x^2] - E[x]^2 would fail.
    spread = np.array([1, 4, 9])[:, None, None, None]
    views = (rng.normal(size=(6, 3, 4, 4, 5)) * spread + 300).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), views[:, 0], train=True)
    together, updates = norm.apply(
        variables, views.reshape(18, 4, 4, 5), train=True, views=3, mutable=["batch_stats"]
    )
    together = together.reshape(views.shape)
    means, variances = [], []
    for i in range(3):
        alone, _ = norm.apply(variables, views[:, i], train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(together[:, i], alone, atol=2e-5)
        flat = views[:, i].reshape(-1, 5).astype(np.float64)
        wanted = (views[:, i] - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        np.testing.assert_allclose(alone, wanted, atol=1e-3)
        means.append(flat.mean(0))
        variances.append(flat.var(0))
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * np.mean(means, 0), rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * np.mean(variances, 0), rtol=1e-4)


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
