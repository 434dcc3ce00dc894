import functools

import jax
import numpy as np

from elev_ssl_jax.pretraining import elevation, scores
from elev_ssl_jax.runtime import sharding
from tests import runs


def predict(config, chips, part=slice(None)):
    """Outputs on some of the chips, and what is true of them, all batches together."""
    method = elevation.make(config, chips, sharding.make_mesh())
    few = {name: array[:2] for name, array in chips.items()}

    def init():
        shown, _ = method.views(jax.random.split(jax.random.key(0), 2), few, True)
        return method.model.init(jax.random.key(0), *shown, train=True)

    variables = runs.drawn(init)
    run = scores.make_predict(config, method, sharding.make_mesh())
    parts = list(run(variables, {name: array[part] for name, array in chips.items()}))
    return [
        {name: np.concatenate([p[i][name] for p in parts]) for name in parts[0][i]} for i in (0, 1)
    ]


def test_predictions_do_not_depend_on_how_the_last_batch_is_filled(tiny, chips):
    whole, true = predict(tiny, chips)
    assert whole["features"].shape == (20, 32)
    assert whole["elevation"].shape == (20, 11, 11)
    for name in ("label", "elevation"):
        np.testing.assert_array_equal(true[name], chips[name])
    part, _ = predict(tiny, chips, slice(16, None))
    np.testing.assert_allclose(part["features"], whole["features"][16:], atol=1e-5)
    np.testing.assert_allclose(part["elevation"], whole["elevation"][16:], rtol=1e-3, atol=1e-2)


def test_nothing_depends_on_the_size_of_a_batch(tiny, chips):
    outputs = []
    for size in (8, 24):
        tiny.batch_size = size
        outputs.append(predict(tiny, chips)[0])
    assert outputs[0]["embeddings"].shape == (20, 2, 8)
    for name in ("features", "embeddings", "elevation"):
        np.testing.assert_allclose(*(out[name] for out in outputs), rtol=1e-3, atol=1e-3)


def test_without_a_contrastive_branch_no_views_are_made_for_it(tiny, chips):
    tiny.objective.alpha = 1.0
    few = {name: chips[name][:4] for name in ("image", "elevation")}
    keys = jax.random.split(jax.random.key(0), 4)
    views = jax.eval_shape(functools.partial(elevation.make_views, tiny, train=False), keys, few)
    assert views.inputs.images.shape == (4, 1, 32, 32, 3)


def test_chips_are_scored_a_few_at_a_time_however_large_a_batch_is(tiny, chips, monkeypatch):
    whole = predict(tiny, chips)[0]
    tiny.batch_size = 2**15
    monkeypatch.setattr(scores, "_AT_A_TIME", 6)  # of eight devices, eight
    sizes = []
    in_order = scores.batches.in_order

    def counting(chips, names, mesh, batch_size):
        sizes.append(batch_size)
        return in_order(chips, names, mesh, batch_size)

    monkeypatch.setattr(scores.batches, "in_order", counting)
    some = predict(tiny, chips)[0]
    assert sizes == [8]
    np.testing.assert_allclose(some["features"], whole["features"], atol=1e-5)
