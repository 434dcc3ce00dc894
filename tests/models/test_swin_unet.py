import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.convert import names
from elev_ssl_jax.models.swin_unet import SwinUNetDecoder
from tests.models import torch_swin


def key(path):
    """The reference has our names."""
    name = ".".join([*path[1:-1], names._LEAVES[path[-1]]])
    return name.replace(".fc", ".mlp.fc")


@pytest.mark.parametrize(("size", "sides"), [(56, (14, 7, 4, 2)), (50, (13, 7, 4, 2))])
def test_logits_equal_pytorch(rng, size, sides):
    channels = 24
    maps = [
        [
            rng.normal(size=(2, side, side, channels * 2**i)).astype(np.float32)
            for i, side in enumerate(sides)
        ]
        for _ in range(2)
    ]
    model = torch_swin.randomize(torch_swin.Decoder(channels, 5))
    ours = SwinUNetDecoder(5, (size, size))
    template = jax.eval_shape(lambda: ours.init(jax.random.key(0), maps, train=False))
    tensors = {name: value.detach().numpy() for name, value in model.named_parameters()}
    variables = names.from_torch(tensors, template, key, "the reference")
    with torch.no_grad():
        given = [[torch.from_numpy(m) for m in branch] for branch in maps]
        wanted = model(*given, (size, size)).numpy()
    got = jax.jit(lambda v: ours.apply(v, maps, train=False))(variables)
    assert got.shape == (2, size, size, 5)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_it_has_the_papers_parameters():
    maps = [jnp.ones((1, 56 // 2**i, 56 // 2**i, 96 * 2**i)) for i in range(4)]
    decoder = SwinUNetDecoder(8, (224, 224))
    variables = jax.eval_shape(lambda: decoder.init(jax.random.key(0), [maps, maps], train=False))[
        "params"
    ]
    counts = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in variables.items()}
    assert counts["branch1"] == counts["branch2"] == 13_712_970
    assert counts["expand"] + counts["head"] == 591_744
    assert sum(counts.values()) + 27_517_818 + 27_534_714 == 83_070_216  # with both encoders
