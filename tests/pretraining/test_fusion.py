"""Two sensors through the same step and loop as two views."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elev_ssl_jax import augment
from elev_ssl_jax.checks import check
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.models import encoders
from elev_ssl_jax.models.swin import Swin
from elev_ssl_jax.models.vgg import VGG
from elev_ssl_jax.pretraining import fusion, loop
from elev_ssl_jax.pretraining.step import make_train_step
from elev_ssl_jax.runtime import checkpoint, sharding
from elev_ssl_jax.runtime.train_state import TrainState
from tests import runs
from tests.pretraining.test_loop import Stop, Stopping, Writer, final_state
from tests.pretraining.test_step import norm

SIZE = 32
KINDS = {
    "dual_simclr": {"objective.alpha": 0.5},
    "mma": {
        "model.encoder": "vgg",
        "objective.global_features": "map",
        "objective.negatives": "across",
    },
    "dual_swin": {"model.encoder": "swin_t"},
}


class TinySwin(Swin):
    """Two stages, which compile in a tenth of the time."""

    depths: tuple[int, ...] = (2, 2)
    heads: tuple[int, ...] = (3, 6)


@pytest.fixture(autouse=True)
def _tiny_swin(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "swin_t", TinySwin)


@pytest.fixture
def tiny(tiny):
    return tiny


@pytest.fixture
def config(tiny):
    tiny.data.inputs, tiny.data.rgb = ("s1", "s2"), (5, 3, 2)
    tiny.data.value_range = (*[(-30.0, 5.0)] * 2, *[(0.0, 6000.0)] * 4)
    tiny.data.scaling = "crop_max"
    tiny.model.fusion, tiny.objective.positives = "late", "sensors"
    tiny.objective.alpha, tiny.objective.temperature = 0.0, 0.2
    tiny.augment.crop_size = 24
    check(tiny)
    return tiny


def make_chips(count, seed=0):
    rng = np.random.default_rng(seed)
    ground = rng.uniform(size=(count, SIZE, SIZE, 1))
    return {
        "s1": (-30 * ground + rng.normal(size=(count, SIZE, SIZE, 2))).astype(np.float32),
        "s2": (6000 * ground + rng.normal(size=(count, SIZE, SIZE, 4))).astype(np.uint16),
        "elevation": (900 * ground[:, ::4, ::4, 0]).astype(np.float32),
        "label": np.arange(count) % 3,
    }


def start(config, chips):
    method = fusion.make(config, chips, sharding.make_mesh())
    few = {name: jnp.asarray(chips[name][:2]) for name in method.reads}

    def init():
        shown, _ = method.views(augment.sample_keys(0, 0, 2), few, True)
        return method.model.init(jax.random.key(0), *shown, train=True)

    return method, runs.drawn(init)


def applied(method, variables, inputs):
    return jax.jit(functools.partial(method.model.apply, train=False))(variables, *inputs)


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def info_nce(similarity, temperature):
    """Of [N, M] similarities whose diagonal is the positives', by rows."""
    logits = similarity / temperature
    return np.mean(np.log(np.sum(np.exp(logits), axis=1)) - np.diag(logits))


def encoded(config, variables, chips, kind):
    """Last maps of each sensor in float64, each by an encoder that stands alone."""
    keys = augment.sample_keys(3, 0, len(chips["s1"]))
    made = jax.jit(functools.partial(fusion.make_views, config))(keys, chips)
    images, first, maps = made.inputs.images[:, 0], 0, []
    for name, bands in (("s1", 2), ("s2", 4)):
        alone = {part: tree["encoder"][name] for part, tree in variables.items()}
        part = images[..., first : first + bands]
        encoder = jax.jit(functools.partial(kind(width=0.125).apply, train=False))
        maps.append(np.asarray(encoder(alone, part)[-1], np.float64))
        first += bands
    return made, maps


def test_dual_simclr_is_nt_xent_between_heads_of_two_encoders(config, rng):
    chips = make_chips(8, seed=int(rng.integers(1 << 30)))
    method, variables = start(config, chips)
    made, maps = encoded(config, variables, chips, VGG)
    outputs = applied(method, variables, made.inputs)
    rows = []
    for name, last in zip(("s1", "s2"), maps, strict=True):
        head = variables["params"][f"projection_{name}"]
        hidden = last.mean(axis=(1, 2)) @ head["linear1"]["kernel"] + head["linear1"]["bias"]
        rows.append(np.maximum(hidden, 0) @ head["linear2"]["kernel"] + head["linear2"]["bias"])
    z = unit(np.concatenate(rows))
    similarity = np.exp(z @ z.T / 0.2)
    np.fill_diagonal(similarity, 0)
    partner = np.roll(np.arange(16), 8)
    wanted = -np.mean(np.log(similarity[np.arange(16), partner] / similarity.sum(axis=1)))
    loss, terms = method.loss(outputs, made.targets)
    np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    assert set(terms) == {"loss", "global_loss"}
    features = np.concatenate([last.mean(axis=(1, 2)) for last in maps], axis=-1)
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-4, atol=1e-5)


def test_mma_is_the_mean_of_the_pixels_cosines_both_ways(config, rng):
    config.update_from_flattened_dict(KINDS["mma"])
    check(config)
    chips = make_chips(6, seed=int(rng.integers(1 << 30)))
    method, variables = start(config, chips)
    assert set(variables["params"]) == {"encoder"}  # no head
    made, (one, other) = encoded(config, variables, chips, VGG)
    outputs = applied(method, variables, made.inputs)
    cosines = np.einsum("nhwc,mhwc->nmhw", unit(one + 1e-12), unit(other + 1e-12)).mean((2, 3))
    wanted = (info_nce(cosines, 0.2) + info_nce(cosines.T, 0.2)) / 2
    np.testing.assert_allclose(method.loss(outputs, made.targets)[0], wanted, rtol=1e-4)


def test_without_a_head_the_means_themselves_are_compared(config):
    config.model.projection = ()
    check(config)
    chips = make_chips(4)
    method, variables = start(config, chips)
    made = method.views(augment.sample_keys(0, 0, 4), chips, True)
    outputs = applied(method, variables, made.inputs)
    both = outputs["embeddings"].reshape(4, -1)
    np.testing.assert_array_equal(both, outputs["features"])


def test_both_sensors_and_the_elevation_show_the_same_square(config):
    config.objective.alpha, config.data.scaling = 0.5, "range"
    config.augment.crop_size = 16
    rows = np.broadcast_to(np.arange(SIZE, dtype=np.float32)[:, None], (SIZE, SIZE))
    place = np.stack([rows, rows.T], axis=-1)
    chips = {
        "s1": np.repeat(place[None] - 30, 9, axis=0),
        "s2": np.repeat(place[None, ..., [0, 1, 0, 1]], 9, axis=0).astype(np.uint16),
        # Cells of four pixels, in their middle.
        "elevation": np.repeat(10 * (np.arange(8) * 4 + 1.5)[None, :, None] + np.zeros(8), 9, 0)
        .reshape(9, 8, 8)
        .astype(np.float32),
    }
    chips["elevation"][0, 0] = np.nan
    made = fusion.make_views(config, augment.sample_keys(5, 2, 9), chips)
    images = np.asarray(made.inputs.images[:, 0])
    assert images.shape == (9, 16, 16, 6)
    found = images * ([35, 35] + [6000] * 4)
    np.testing.assert_allclose(found[..., 0], found[..., 2], atol=1e-2)
    np.testing.assert_allclose(found[..., 1], found[..., 5], atol=1e-2)
    tops, lefts = found[:, 0, 0, 0].round(), found[:, 0, 0, 1].round()
    assert len(np.unique(tops)) > 2
    assert len(np.unique(lefts)) > 2
    target = np.asarray(made.targets.elevation) * config.data.elevation_scale / 10
    assert target.shape == (9, 4, 4)
    for top, cells in zip(tops, target, strict=True):
        centres = np.clip(top + 4 * np.arange(4) + 1.5, 1.5, 29.5)  # beyond, the edge goes on
        known = ~np.isnan(cells[:, 0])
        np.testing.assert_allclose(cells[known, 0], centres[known], atol=1e-3)
        assert known.sum() >= 3 - (top == 0)

    judged = fusion.make_views(config, augment.sample_keys(5, 2, 9), chips, train=False)
    found = np.asarray(judged.inputs.images[:, 0]) * ([35, 35] + [6000] * 4)
    np.testing.assert_allclose(found[:, 0, 0, :2], 8, atol=1e-3)  # the middle


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("microbatch_size", [0, 8])
def test_a_step_is_the_same_on_one_device_and_on_eight(
    config, batch_mesh, kind, microbatch_size, rng
):
    config.update_from_flattened_dict(KINDS[kind])
    config.batch_size, config.microbatch_size, config.loss.chunk_size = 16, microbatch_size, 12
    check(config)
    method, variables = start(config, make_chips(16))
    old = jax.device_get(variables["params"])
    meshes = [batch_mesh(devices) for devices in (1, 8)]
    sgd = optax.sgd(1.0), optax.constant_schedule(1.0)
    steps = [make_train_step(config, method, *sgd, mesh) for mesh in meshes]

    def relative_error():
        chips = make_chips(16, seed=int(rng.integers(1 << 30)))
        batch = {name: chips[name] for name in method.reads}
        gradients, losses = [], []
        for mesh, step in zip(meshes, steps, strict=True):
            state = TrainState.create(jax.tree.map(jnp.copy, variables), sgd[0])
            state = jax.device_put(state, sharding.replicated(mesh))
            placed = sharding.place(batch, sharding.split(mesh))
            state, terms = step(state, placed, config.seed)
            gradients.append(jax.tree.map(np.subtract, jax.device_get(state.params), old))
            losses.append(float(terms["loss"]))
            assert bool(state.batch_stats) == (kind != "dual_swin")  # which has no statistics
        np.testing.assert_allclose(*losses, rtol=1e-5)
        return norm(jax.tree.map(np.subtract, *gradients)) / norm(gradients[0])

    # Rounding takes some activation across a kink of ReLU or of max-pooling, now and then.
    errors = [relative_error()]
    while errors[-1] > 1e-3 and len(errors) < 8:
        errors.append(relative_error())
    assert max(errors) < 0.1
    assert min(errors) < 1e-3


@pytest.mark.parametrize("kind", ["dual_simclr", "dual_swin"])
def test_a_run_is_scored_goes_on_to_the_same_bits_and_can_be_loaded(
    config, tmp_path, batch_mesh, monkeypatch, kind
):
    config.update_from_flattened_dict(KINDS[kind])
    check(config)
    monkeypatch.setattr(sharding, "make_mesh", lambda: batch_mesh(1))
    arrays = make_chips(24)
    data = loop.Data(arrays, {k: v[:10] for k, v in arrays.items()}, arrays)

    with pytest.raises(Stop):
        loop.pretrain(config, tmp_path / "parts", data, Stopping(4))
    loop.pretrain(config, tmp_path / "parts", data, Writer())
    scores = loop.pretrain(config, tmp_path / "whole", data, Writer())
    assert json.loads((tmp_path / "parts" / "results.json").read_text()) == scores
    states = [final_state(tmp_path / name) for name in ("parts", "whole")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    told = kind == "dual_simclr"
    assert {"contrastive_top1", "probe_accuracy"} <= scores.keys()
    assert ("elevation_rmse_m" in scores) == told
    assert (tmp_path / "whole" / "views.png").stat().st_size > 10_000
    assert (tmp_path / "whole" / "elevation.png").exists() == told

    saved = checkpoint.load(tmp_path / "whole")
    assert set(saved.variables["params"]["encoder"]) == {"s1", "s2"}
    assert saved.about["shapes"]["s2"] == [24, 24, 4]
    model = inference.load(tmp_path / "whole")
    images = {name: arrays[name][:3, 4:28, 4:28] for name in ("s1", "s2")}
    features = model.features(images)
    judged = fusion.make_views(
        config,
        augment.sample_keys(0, 0, 3),
        {name: arrays[name][:3] for name in ("s1", "s2", "elevation")},
        train=False,
    )
    method = fusion.make(config, arrays, sharding.make_mesh())
    outputs = applied(method, saved.variables, judged.inputs)
    np.testing.assert_allclose(features, outputs["features"], rtol=1e-4, atol=1e-5)
    if told:
        np.testing.assert_allclose(
            model.elevation(images), outputs["elevation"] * 500, rtol=1e-3, atol=0.1
        )


def test_squares_too_small_for_the_encoder_are_refused(config):
    config.update_from_flattened_dict({**KINDS["mma"], "augment.crop_size": 7})
    with pytest.raises(InputError, match=r"model.encoder is vgg, .* 7 x 7 pixels; 8 are needed"):
        fusion.make(config, make_chips(4), sharding.make_mesh())


def test_squares_larger_than_the_chips_are_refused(config):
    config.augment.crop_size = 40
    with pytest.raises(InputError, match=r"crop_size is 40; s1 has 32 x 32 pixels, so it must be"):
        fusion.make(config, make_chips(4), sharding.make_mesh())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data.inputs": ("s1", "s2", "elevation")}, "data.inputs"),
        ({"model.fusion": "early"}, "model.fusion"),
        ({"objective.lam": 0.5}, "objective.lam"),
        ({"objective.global_features": "style"}, "objective.global_features"),
        ({"objective.positives": "views", "objective.global_features": "map"}, "global_features"),
        ({"data.bands": (0, 1)}, "data.bands"),
        ({"data.std": (1.0,)}, "data.std"),
    ],
)
def test_what_two_sensors_can_not_be_is_refused(config, fields, said):
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=said):
        check(config)
