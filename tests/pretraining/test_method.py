"""The seam: a method of another kind goes through the loop as those of the project do."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elev_ssl_jax import losses
from elev_ssl_jax.models.resnet import ResNet18
from elev_ssl_jax.pretraining import loop
from elev_ssl_jax.pretraining.method import Method, Views
from elev_ssl_jax.runtime import checkpoint, sharding
from tests.pretraining.test_loop import Writer, final_state


class Pair(nn.Module):
    """An encoder for each of two sensors."""

    dtype: np.dtype = np.dtype(np.float32)

    @nn.compact
    def __call__(self, s1, s2, *, train):
        encoder = Encoders(name="encoder")
        features = encoder(s1, s2, train=train)
        return {
            "features": jnp.concatenate(features, axis=-1),
            "embeddings": jnp.stack(features, axis=1),
        }


class Encoders(nn.Module):
    @nn.compact
    def __call__(self, s1, s2, *, train):
        return [
            jnp.mean(ResNet18(width=0.125, name=name)(images, train=train)[-1], axis=(1, 2))
            for name, images in (("s1", s1), ("s2", s2))
        ]


def make(config, sample, platform):
    """One sensor is the other's positive."""

    def views(keys, batch, train):
        flip = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None] & train
        pair = (batch["s1"] / 30 + 1, batch["s2"] / 6000)
        return Views(tuple(jnp.where(flip, jnp.flip(p, 1), p) for p in pair), None)

    def loss(outputs, _):
        value = losses.nt_xent(outputs["embeddings"][:, 0], outputs["embeddings"][:, 1], 0.5)
        return value, {"loss": value}

    return Method(("s1", "s2"), views, Pair(), loss)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    ground = rng.uniform(size=(24, 32, 32, 1))
    arrays = {
        "s1": (-30 * ground + rng.normal(size=(24, 32, 32, 2))).astype(np.float32),
        "s2": (6000 * ground + rng.normal(size=(24, 32, 32, 4))).astype(np.uint16),
        "label": np.arange(24) % 3,
    }
    return loop.Data(arrays, {k: v[:10] for k, v in arrays.items()}, arrays)


@pytest.mark.parametrize("microbatch_size", [0, 4])
def test_a_method_of_two_sensors_learns_and_is_scored_alike_on_any_topology(
    tiny, data, tmp_path, batch_mesh, monkeypatch, microbatch_size
):
    tiny.data.inputs, tiny.data.rgb = ("s1", "s2"), (5, 3, 2)
    tiny.microbatch_size, tiny.epochs = microbatch_size, 2
    tiny.optimizer.learning_rate = 1e-5
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    curves = {}
    for devices in (1, 4):
        monkeypatch.setattr(sharding, "make_mesh", functools.partial(batch_mesh, devices))
        writer = Writer()
        scores = loop.pretrain(tiny, tmp_path / str(devices), data, writer, make)
        curves[devices] = [v["loss"] for v in writer.scalars.values() if "loss" in v]
        assert set(scores) == {
            *("feature_std", "contrastive_top1"),
            *("probe_accuracy", "probe_macro_f1", "random_probe_accuracy", "random_probe_macro_f1"),
        }
    np.testing.assert_allclose(curves[1], curves[4], rtol=1e-4)
    assert (tmp_path / "1" / "views.png").stat().st_size > 10_000
    assert not (tmp_path / "1" / "elevation.png").exists()
    saved = checkpoint.load(tmp_path / "4")
    assert set(saved.variables["params"]["encoder"]) == {"s1", "s2"}
    assert saved.about["shapes"] == {"s1": [32, 32, 2], "s2": [32, 32, 4]}


def test_it_goes_on_to_the_same_bits(tiny, data, tmp_path, batch_mesh, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda: batch_mesh(1))
    tiny.data.inputs, tiny.data.rgb = ("s1", "s2"), (5, 3, 2)

    class Stopping(Writer):
        def write_scalars(self, step, scalars):
            if step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.pretrain(tiny, tmp_path / "parts", data, Stopping(), make)
    loop.pretrain(tiny, tmp_path / "parts", data, Writer(), make)
    scores = loop.pretrain(tiny, tmp_path / "whole", data, Writer(), make)
    assert json.loads((tmp_path / "parts" / "results.json").read_text()) == scores
    states = (final_state(tmp_path / name) for name in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, *states)
