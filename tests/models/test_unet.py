import jax
import jax.numpy as jnp
import pytest

from elev_ssl_jax.models.unet import Decoder, UNet


def shapes(module, *args):
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *args, train=True))


@pytest.mark.parametrize(
    ("output", "channels"),
    [(33, [256, 128, 64, 32]), (100, [256, 128, 64, 32, 16]), (50, [256, 128, 64, 32])],
)
def test_blocks_end_at_the_output_size(output, channels):
    sizes = zip((50, 25, 13, 7, 4), (64, 64, 128, 256, 512), strict=True)
    features = [jnp.zeros((1, s, s, c)) for s, c in sizes]
    out, variables = shapes(Decoder(2, (output, output)), features)
    assert out.shape == (1, output, output, 2)
    blocks = {k: v for k, v in variables["params"].items() if k.startswith("block")}
    assert [b["conv2"]["kernel"].shape[-1] for b in blocks.values()] == channels


def test_unet_keeps_its_encoder_under_its_own_key():
    model = UNet(num_classes=3, output_size=(40, 40), width=0.125)
    logits, variables = shapes(model, jnp.zeros((2, 40, 40, 4)))
    assert logits.shape == (2, 40, 40, 3)
    assert logits.dtype == jnp.float32
    for part in ("params", "batch_stats"):
        assert set(variables[part]) == {"encoder", "decoder"}


@pytest.mark.parametrize(("padding", "flat"), [("edge", True), ("zeros", False)])
def test_with_edge_padding_a_flat_map_has_no_frame(padding, flat):
    features = [jnp.ones((2, s, s, 8)) for s in (16, 8, 4)]
    features = [f * jax.random.normal(jax.random.key(i), (8,)) for i, f in enumerate(features)]
    decoder = Decoder(1, (16, 16), width=0.125, padding=padding)
    out, variables = jax.jit(decoder.init_with_output, static_argnames="train")(
        jax.random.key(3), features, train=False
    )
    assert out.shape == (2, 16, 16, 1)
    assert bool(jnp.ptp(out) < 1e-4) == flat
    other = "zeros" if padding == "edge" else "edge"
    decoder = Decoder(1, (16, 16), width=0.125, padding=other)
    weights = jax.eval_shape(lambda: decoder.init(jax.random.key(3), features, train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, weights)
