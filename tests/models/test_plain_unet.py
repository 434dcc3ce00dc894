from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from elev_ssl_jax.convert import names
from elev_ssl_jax.models.fusion import Branches
from elev_ssl_jax.models.plain_unet import PlainDecoder, PlainEncoder
from elev_ssl_jax.models.resnet import ResNet18, ResNet50
from elev_ssl_jax.models.swin import Swin
from elev_ssl_jax.models.vgg import VGG
from tests.models import torch_plain_unet, torch_resnet

BANDS = {"s1": 2, "s2": 3}


class Model(nn.Module):
    encoder: Any
    decoder: Any

    def __call__(self, images, *, train):
        return self.decoder(self.encoder(images, train=train), train=train)


def double(encoder, width=1.0):
    return Branches(tuple(BANDS.items()), encoder, width)


def key(path):
    """The reference has our names."""
    return ".".join([*path[1:-1], names._LEAVES[path[-1]]])


def variables_of(reference, model, *inputs):
    """The weights of a reference in PyTorch, drawn afresh, as those of a model."""
    for parameter in reference.parameters():
        if parameter.ndim == 4:  # as large as keeps what passes through all layers alive
            torch.nn.init.kaiming_normal_(parameter)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    tensors = torch_resnet.tensors(torch_resnet.randomize(reference))
    # Copies, for training changes the reference's statistics in place.
    tensors = {name: value.copy() for name, value in tensors.items()}
    return names.from_torch(tensors, template, key, "the reference")


def to_torch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def from_torch(tensor):
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def difference(got, wanted):
    """The largest, as a part of the largest value."""
    return np.abs(got - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("reference", "encoder", "size"),
    [
        (partial(torch_plain_unet.UNet, 5), PlainEncoder(1 / 16), (37, 50)),
        (partial(torch_plain_unet.DoubleUNet, BANDS), double(PlainEncoder, 1 / 16), (32, 19)),
    ],
)
def test_logits_statistics_and_gradients_equal_pytorch(rng, reference, encoder, size, train):
    model, reference = Model(encoder, PlainDecoder(3, size)), reference(classes=3, base=4)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients(params, images, statistics, towards):
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return (logits * towards).sum(), (logits, updated)

    differences = []
    for _ in range(5):
        images = rng.normal(size=(4, *size, 5)).astype(np.float32)
        towards = rng.normal(size=(4, *size, 3)).astype(np.float32)
        variables = variables_of(reference, model, images)
        reference.train(train).zero_grad()
        given = to_torch(images).requires_grad_()
        wanted = reference(given)
        (wanted * to_torch(towards)).sum().backward()
        (to_params, to_images), (logits, updated) = gradients(
            variables["params"], images, variables["batch_stats"], towards
        )
        assert difference(logits, from_torch(wanted)) < 1e-4
        for name, value in names.to_torch(updated, key, 0).items():
            if not name.endswith("num_batches_tracked"):
                assert difference(value, reference.state_dict()[name].numpy()) < 1e-4
        theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
        ours = names.to_torch({"params": to_params}, key, 0)
        assert ours.keys() == theirs.keys()
        in_draw = [difference(to_images, from_torch(given.grad))]
        for name, gradient in ours.items():
            # In training the batch's mean takes a convolution's bias away: all of it is rounding.
            if not (train and ".conv" in name and name.endswith("bias")):
                in_draw.append(difference(gradient, theirs[name]))
        differences.append(max(in_draw))
    # Where one of all those activations lies within rounding of zero, or of its neighbour in the
    # pool, the two gradients jump apart: in a draw out of ten, not in five out of five.
    assert min(differences) < 1e-4, differences


@pytest.mark.parametrize("train", [False, True])
def test_maps_of_an_encoder_that_rounds_up_equal_pytorch(rng, train):
    sizes = ((19, 25, 4), (10, 13, 6), (5, 7, 8), (3, 4, 16))
    maps = [rng.normal(size=(4, *size)).astype(np.float32) for size in sizes]
    reference = torch_plain_unet.Decoder([(24, 6), (12, 4), (8, 4)], 3)
    decoder = PlainDecoder(3, (38, 50))
    variables = variables_of(reference, decoder, maps)
    wanted = reference.train(train)([to_torch(m) for m in maps])
    wanted = torch.nn.functional.interpolate(wanted, (38, 50), mode="nearest")
    apply = jax.jit(partial(decoder.apply, train=train, mutable=["batch_stats"]))
    got, _ = apply(variables, maps)
    assert difference(got, from_torch(wanted)) < 1e-4


@pytest.mark.parametrize(
    ("encoder", "bands", "count"),
    [
        (PlainEncoder(), 15, 17_274_760),
        (Branches((("s1", 2), ("s2", 13)), PlainEncoder), 15, 50_244_936),
    ],
)
def test_parameters_are_the_papers(encoder, bands, count):
    model = Model(encoder, PlainDecoder(8, (224, 224)))
    images = jnp.ones((1, 224, 224, bands))
    logits, variables = shapes(model, images)
    assert logits.shape == (1, 224, 224, 8)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


def shapes(model, images):
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))


@pytest.mark.parametrize("width", [0.125, 0.3, 1.0])
def test_width_multiplies_all_channels(width):
    model = Model(PlainEncoder(width), PlainDecoder(8, (32, 32)))
    params = shapes(model, jnp.ones((1, 32, 32, 3)))[1]["params"]
    for part, channels in (("encoder", (64, 128, 256, 512, 512)), ("decoder", (256, 128, 64, 64))):
        blocks = [block for name, block in sorted(params[part].items()) if name != "head"]
        got = [block["conv2"]["kernel"].shape[-1] for block in blocks]
        assert got == [round(c * width) for c in channels]


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
@pytest.mark.parametrize(
    ("encoder", "channels"),
    [
        (ResNet18(), [128, 64, 64, 64]),
        (ResNet50(), [512, 256, 64, 64]),
        (Swin(), [192, 96, 96]),
        (VGG(), [128, 64, 64]),
        (PlainEncoder(), [256, 128, 64, 64]),
        (double(ResNet18), [256, 128, 128, 128]),
    ],
)
def test_it_takes_the_maps_of_any_encoder(encoder, channels, size):
    model = Model(encoder, PlainDecoder(8, size, jnp.bfloat16))
    logits, variables = shapes(model, jnp.ones((2, *size, 5)))
    assert logits.shape == (2, *size, 8)
    assert logits.dtype == jnp.float32
    blocks = {k: v for k, v in variables["params"]["decoder"].items() if k != "head"}
    assert [blocks[f"up{i + 1}"]["conv2"]["kernel"].shape[-1] for i in range(len(blocks))] == (
        channels
    )
