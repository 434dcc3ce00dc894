import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.models.resnet import BatchNorm, ResNet18
from tests.models import torch_resnet


@pytest.fixture(scope="module")
def reference():
    """A PyTorch ResNet18 with random weights and running statistics."""
    model = torch_resnet.ResNet18()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "bn" in name or "downsample.1" in name:
                if name.endswith("running_var") or name.endswith("weight"):
                    value.uniform_(0.5, 1.5)
                elif value.dtype.is_floating_point:
                    value.uniform_(-0.5, 0.5)
    return model


@pytest.mark.parametrize("size", [64, 100])
def test_forward_equals_pytorch(rng, reference, size):
    images = rng.random((2, size, size, 3), np.float32)
    with torch.no_grad():
        expected = reference.eval()(torch.from_numpy(images).permute(0, 3, 1, 2))
    got = ResNet18().apply(torch_resnet.to_flax(reference), images, train=False)
    assert len(got) == 5
    for ours, theirs in zip(got, expected, strict=True):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-4 * max(1, np.abs(theirs).max())
    if size == 100:
        assert [m.shape[1] for m in got] == [50, 25, 13, 7, 4]


def test_training_forward_equals_pytorch(rng, reference):
    images = rng.random((4, 64, 64, 3), np.float32)
    variables = torch_resnet.to_flax(reference)
    got, _ = ResNet18().apply(variables, images, train=True, mutable=["batch_stats"])
    with torch.no_grad():
        expected = reference.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
    for ours, theirs in zip(got, expected, strict=True):
        theirs = theirs.permute(0, 2, 3, 1).numpy()
        assert np.abs(ours - theirs).max() < 1e-3 * max(1, np.abs(theirs).max())


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
