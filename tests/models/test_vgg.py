from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from elev_ssl_jax.convert import names
from elev_ssl_jax.models.vgg import VGG


class Reference(nn.Module):
    """With our names."""

    def __init__(self, bands, channels):
        super().__init__()
        for i, count in enumerate(channels):
            for j in (1, 2):
                conv = nn.Conv2d(bands, count, 3, padding=1, bias=False)
                self.add_module(f"block{i + 1}_conv{j}", conv)
                self.add_module(f"block{i + 1}_bn{j}", nn.BatchNorm2d(count))
                bands = count

    def forward(self, x):
        parts, maps = dict(self.named_children()), []
        for i in range(4):
            x = nn.functional.max_pool2d(x, 2) if i else x
            for j in (1, 2):
                x = torch.relu(parts[f"block{i + 1}_bn{j}"](parts[f"block{i + 1}_conv{j}"](x)))
            maps.append(x)
        return maps


@pytest.mark.parametrize("size", [32, 45])
def test_maps_and_gradients_equal_pytorch(rng, size):
    model, encoder = Reference(2, (8, 16, 32, 32)).train(), VGG(width=0.125)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.5, 0.1) if parameter.ndim == 1 else None
    tensors = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    shape = (3, size, size, 2)
    template = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros(shape), train=False)
    )

    def key(path):
        return ".".join([*path[1:-1], names._LEAVES[path[-1]]])

    variables = names.from_torch(tensors, template, key, "the reference")

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(images):
        maps, _ = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        return sum((m**2).sum() for m in maps), maps

    def relative_error():
        images = rng.normal(size=shape).astype(np.float32)
        given = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
        wanted = model(given)
        sum((m**2).sum() for m in wanted).backward()
        to_images, maps = gradient(images)
        for got, theirs in zip(maps, wanted, strict=True):
            theirs = theirs.detach().permute(0, 2, 3, 1).numpy()
            np.testing.assert_allclose(got, theirs, atol=1e-4 * np.abs(theirs).max())
        theirs = given.grad.permute(0, 2, 3, 1).numpy()
        return np.abs(to_images - theirs).max() / np.abs(theirs).max()

    # Rounding takes some activation across a kink of ReLU or of max-pooling, now and then.
    errors = [relative_error()]
    while errors[-1] > 1e-3 and len(errors) < 5:
        errors.append(relative_error())
    assert max(errors) < 0.1
    assert min(errors) < 1e-3


@pytest.mark.parametrize(("bands", "count"), [(2, 2_326_400), (13, 2_332_736)])
def test_it_has_the_papers_parameters(bands, count):
    images = jnp.ones((1, 128, 128, bands))
    maps, variables = jax.eval_shape(
        lambda: VGG().init_with_output(jax.random.key(0), images, train=False)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    assert maps[-1].shape == (1, 16, 16, 256)
