from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from elev_ssl_jax.models.classifier import Classifier
from elev_ssl_jax.models.fusion import Branches, joined, parted
from elev_ssl_jax.models.resnet import ResNet18
from elev_ssl_jax.models.swin import Swin
from elev_ssl_jax.models.unet import UNet
from elev_ssl_jax.models.vgg import VGG
from tests import runs

BANDS = (("s1", 2), ("s2", 13))


def counts(model, size=64, bands=15):
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, size, size, bands)), train=False)
    )
    return jax.tree.map(lambda x: x.size, variables["params"])


def total(tree):
    return sum(jax.tree.leaves(tree))


def test_each_sensor_has_an_encoder_of_its_own(rng):
    branches = Branches(BANDS, VGG, width=0.125)
    images = rng.random((2, 32, 32, 15), np.float32)
    variables = runs.drawn(lambda: branches.init(jax.random.key(0), images, train=False))
    assert set(variables["params"]) == {"s1", "s2"}
    maps = branches.apply(variables, images, train=False)
    apart = branches.apply(variables, images, train=False, method="apart")
    for (name, _), part, bands in zip(BANDS, apart, ((0, 2), (2, 15)), strict=True):
        alone = {kind: tree[name] for kind, tree in variables.items()}
        wanted = VGG(width=0.125).apply(alone, images[..., slice(*bands)], train=False)
        for a, b in zip(part, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(maps, joined(apart), strict=True):
        np.testing.assert_array_equal(a, b)
    for one, other in zip(parted(maps, 2), apart, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_parameters_are_the_papers():
    resnets = counts(Branches(BANDS))
    assert (total(resnets["s1"]), total(resnets["s2"])) == (11_173_376, 11_207_872)
    late = counts(Classifier(8, partial(Branches, BANDS)))
    assert total(late["head"]) == 1024 * 8 + 8
    swin = counts(Classifier(8, partial(Branches, BANDS, Swin)), size=224)
    assert total(swin) == 55_064_828
    early = counts(Classifier(8, Swin), size=224)
    assert total(early) == 27_543_938


def test_any_head_takes_any_encoder(rng):
    for encoder in (ResNet18, Swin, VGG, partial(Branches, BANDS), partial(Branches, BANDS, Swin)):
        for model, shape in (
            (Classifier(3, encoder, width=0.125), (1, 3)),
            (UNet(3, (32, 32), encoder, width=0.125), (1, 32, 32, 3)),
        ):
            images = jnp.ones((1, 32, 32, 15))
            logits, variables = jax.eval_shape(
                lambda model=model, images=images: model.init_with_output(
                    jax.random.key(0), images, train=False
                )
            )
            assert logits.shape == shape
            assert "encoder" in variables["params"]
