from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.convert import names
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.models.classifier import Classifier
from elev_ssl_jax.models.resnet import ResNet18, ResNet34, ResNet50
from elev_ssl_jax.models.swin import Swin
from elev_ssl_jax.models.unet import UNet
from tests.models import torch_resnet

ENCODERS = {"resnet18": ResNet18, "resnet34": ResNet34, "resnet50": ResNet50}
PUBLISHED = Path(__file__).with_name("torchvision_keys.txt")  # of torchvision 0.29
TIMM = Path(__file__).with_name("timm_keys.txt")  # of timm 1.0.31


def random_variables(model, rng, size=64):
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=True)
    )
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", ENCODERS)
def test_keys_and_shapes_are_torchvisions(rng, name):
    variables = random_variables(Classifier(1000, ENCODERS[name]), rng)
    tensors = names.to_torch(variables, names.torchvision_key, 7)
    rows = [line.split() for line in PUBLISHED.read_text().splitlines()]
    published = {key: tuple(map(int, shape)) for model, key, *shape in rows if model == name}
    assert {key: value.shape for key, value in tensors.items()} == published
    assert tensors["bn1.num_batches_tracked"] == 7


def test_keys_and_shapes_are_timms(rng):
    variables = random_variables(Classifier(1000, Swin), rng)
    tensors = names.to_torch(variables, names.swin_key, 7)
    rows = [line.split() for line in TIMM.read_text().splitlines()]
    published = {key: tuple(map(int, shape)) for _, key, *shape in rows}
    assert {key: value.shape for key, value in tensors.items()} == published


@pytest.mark.parametrize(
    ("model", "key"),
    [
        *((Classifier(3, encoder), names.torchvision_key) for encoder in ENCODERS.values()),
        (UNet(3, (64, 64)), names.smp_key),
        (Classifier(3, partial(Swin, (1, 1, 1, 1))), names.swin_key),
    ],
)
def test_there_and_back_is_the_same_to_the_bit(rng, model, key):
    variables = random_variables(model, rng)
    back = names.from_torch(names.to_torch(variables, key, 1), variables, key, "it")
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_unet_logits_equal_pytorch(rng):
    theirs = torch_resnet.randomize(torch_resnet.UNet(3)).eval()
    tensors = torch_resnet.tensors(theirs)
    model = UNet(3, (96, 64))
    template = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 96, 64, 3)), train=True)
    )
    variables = names.from_torch(tensors, template, names.smp_key, "the reference")
    images = rng.random((2, 96, 64, 3), np.float32)
    got = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()

    def again(tree):
        return {k: tuple(v.shape) for k, v in tree.items()}

    assert again(names.to_torch(variables, names.smp_key, 0)) == again(theirs.state_dict())


def test_keys_and_shapes_that_do_not_fit_are_told(rng):
    variables = random_variables(Classifier(3, ResNet18), rng)
    tensors = names.to_torch(variables, names.torchvision_key, 1)
    lacking = {k: v for k, v in tensors.items() if k not in ("bn1.bias", "fc.weight")}

    def read(tensors):
        return names.from_torch(tensors, variables, names.torchvision_key, "F")

    both = r"F doesn't fit \(missing keys: bn1.bias, fc.weight; unknown keys: queue\)"
    with pytest.raises(InputError, match=both):
        read(lacking | {"queue": tensors["fc.bias"]})
    with pytest.raises(InputError, match=r"missing keys: bn1.bias, .* and 96 more"):
        read({})
    bias = tensors["fc.bias"]
    for wrong in (bias[:2], bias.astype(int), bias[None]):
        with pytest.raises(InputError, match=r"fc.bias is \w+ \("):
            read(tensors | {"fc.bias": wrong})
