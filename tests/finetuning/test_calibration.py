import json

import numpy as np
import pytest

from elev_ssl_jax import pictures
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.finetuning import labelled, loop, step
from elev_ssl_jax.finetuning.calibration import BINS, Reliability
from tests import runs


def test_the_error_is_the_mean_gap_of_the_bins(rng, tmp_path):
    targets = rng.integers(0, 3, (20, 6, 6)).astype(np.uint8)
    targets[:, 0] = 255
    classes = rng.integers(0, 3, targets.shape).astype(np.uint8)
    confidence = rng.uniform(1 / 3, 1, targets.shape).astype(np.float32)
    confidence.flat[-1] = 1.0
    parts = Reliability()
    for rows in (slice(0, 7), slice(7, 20)):
        parts.add(targets[rows], classes[rows], confidence[rows])
    found = parts.summary()
    known = targets != 255
    sure, right = confidence[known].astype(np.float64), (targets == classes)[known]
    wanted = 0.0
    for b in range(BINS):
        within = (sure >= b / BINS) & ((sure < (b + 1) / BINS) | (b == BINS - 1))
        assert found["count"][b] == within.sum()
        if not within.any():
            assert found["accuracy"][b] is None
            continue
        assert found["accuracy"][b] == pytest.approx(right[within].mean())
        assert found["confidence"][b] == pytest.approx(sure[within].mean())
        wanted += within.sum() / known.sum() * abs(right[within].mean() - sure[within].mean())
    assert found["error"] == pytest.approx(wanted)
    assert sum(found["count"]) == known.sum()
    assert json.loads(json.dumps(found)) == found
    pictures.draw_reliability(tmp_path / "reliability.png", found)
    assert (tmp_path / "reliability.png").stat().st_size > 5000


def test_one_who_knows_how_often_it_is_right_has_no_error(rng):
    confidence = rng.uniform(0.3, 1, 200_000)
    targets = np.zeros(len(confidence), np.uint8)
    classes = (rng.random(len(confidence)) > confidence).astype(np.uint8)
    honest, boastful = Reliability(), Reliability()
    honest.add(targets, classes, confidence)
    boastful.add(targets, classes, np.full(len(confidence), 0.99))
    assert honest.summary()["error"] < 0.01
    assert boastful.summary()["error"] == pytest.approx(0.99 - (classes == 0).mean())


def test_a_judged_model_is_as_sure_as_its_probabilities(rng):
    config = fine_tuning("linear")
    config.model.width, config.finetune.num_classes = 0.125, 3
    images = rng.integers(0, 6000, (70, 32, 32, 3)).astype(np.uint16)  # more than a batch
    chips = labelled.Labelled({"image": images}, rng.integers(0, 3, 70).astype(np.uint8))
    setup = loop.make_setup(config, {"image": (32, 32, 3)}, 70)
    variables = runs.drawn(lambda: loop.init(setup, 0, (32, 32, 3)))
    reliability = Reliability()
    matrix, classes = step.judge(setup, variables, chips, reliability=reliability)
    likely = np.concatenate(
        [
            np.asarray(step._probabilities(setup, variables, {"image": images[rows]}))
            for rows in (np.arange(64), np.arange(64, 128) % 70)
        ]
    )[:70]
    np.testing.assert_array_equal(classes, likely.argmax(-1))
    wanted = Reliability()
    wanted.add(chips.targets, classes, likely.max(-1))
    found, wanted = reliability.summary(), wanted.summary()
    assert found["count"] == wanted["count"]
    assert sum(found["count"]) == matrix.sum() == 70
    assert found["error"] == pytest.approx(wanted["error"], abs=1e-5)
