import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from elev_ssl_jax.config import default
from elev_ssl_jax.models.encoders import ENCODERS
from elev_ssl_jax.models.up_conv import UpConv
from elev_ssl_jax.pretraining import methods, progress
from elev_ssl_jax.runtime import accelerators, flops, sharding


def forward(model, *images):
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *images, train=False))
    return flops.count(lambda v, x: model.apply(v, *x, train=False), variables, images)


# Multiply-adds as the authors and torchvision have them, which count the last layer too: 1000
# classes of 512, 2048 and 768 features.
@pytest.mark.parametrize(
    ("encoder", "published"),
    [("resnet18", 1.814e9 - 512e3), ("resnet50", 4.089e9 - 2048e3), ("swin_t", 4.5e9)],
)
def test_counts_are_the_published_ones(encoder, published):
    got = forward(ENCODERS[encoder](), jnp.zeros((1, 224, 224, 3))) / 2
    assert got == pytest.approx(published, rel=0.003 if "resnet" in encoder else 0.04)


def test_loops_groups_and_inner_programs_are_counted():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    product = jax.jit(lambda a, b: jnp.einsum("nij,njk->nik", a, b))
    assert flops.count(product, a, b) == 2 * 2 * 3 * 4 * 5
    looped = jax.checkpoint(lambda a: lax.map(lambda _: product(a, b), jnp.arange(7)))
    assert flops.count(looped, a) == 7 * 240
    images, kernel = jnp.ones((2, 8, 8, 6)), jnp.ones((3, 3, 3, 10))

    def grouped(images, kernel):
        return lax.conv_general_dilated(
            *(images, kernel, (1, 1), "SAME"),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    assert flops.count(grouped, images, kernel) == 2 * (2 * 8 * 8 * 10) * (3 * 3 * 3)


def test_what_a_tpu_convolves_without_doubling_is_counted_as_it_is_written():
    block = UpConv(5, "edge", jnp.float32)
    small, skip = jnp.zeros((1, 4, 6, 3)), jnp.zeros((1, 8, 12, 2))
    variables = jax.eval_shape(lambda: block.init(jax.random.key(0), small, (8, 12), skip))
    got = flops.count(lambda v, x, s: block.apply(v, x, (8, 12), s), variables, small, skip)
    assert got == 2 * (8 * 12) * 9 * 5 * 5


def test_a_known_device_has_a_peak_and_another_none(monkeypatch):
    config, mesh = default(), sharding.make_mesh(jax.devices()[:1])
    chips = {
        "image": np.zeros((2, 100, 100, 3), np.uint16),
        "elevation": np.zeros((2, 33, 33), np.float32),
    }
    method = methods.make(config, chips, mesh)
    assert progress.peak_rate(config, method, mesh, chips) is None
    v5e = accelerators.of_kind("TPU v5 lite")
    monkeypatch.setattr(accelerators, "of_kind", lambda _: v5e)
    # Three views at 0.441, and the decoder at 0.338 billion multiply-adds.
    flop = 6 * (3 * 0.441e9 + 0.338e9)
    rate = progress.peak_rate(config, method, mesh, chips)
    assert rate == pytest.approx(197e12 / flop, rel=2e-3)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v5p", "TPU v5p"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80 GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80 GB"),
        ("TPU v5e", "TPU v5e"),
    ],
)
def test_devices_are_known_by_the_name_that_jax_has(kind, name):
    assert accelerators.of_kind(kind).name == name
    assert accelerators.of_kind("cpu") is None
