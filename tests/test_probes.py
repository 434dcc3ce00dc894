import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from elev_ssl_jax import probes
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.probes import Examples
from elev_ssl_jax.recipes import PROBES


@pytest.fixture
def examples(rng):
    """Three classes, told by the first of many features, whose scales differ."""
    features = rng.normal(size=(900, 24)) * np.geomspace(0.01, 100, 24)
    noisy = features[:, 0] / 0.01 + 0.3 * rng.normal(size=900)
    labels = np.digitize(noisy, (-0.5, 0.5))
    labels[::50] = -1
    return [Examples(features[i : i + 300], labels[i : i + 300]) for i in (0, 300, 600)]


def test_the_strength_is_that_which_is_best_on_the_validation_chips(examples):
    train, validation, test = (e.known() for e in examples)
    mean, std = train.features.mean(axis=0), train.features.std(axis=0)

    def fresh(strength):
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-6)
        return model.fit((train.features - mean) / std, train.labels)

    def right(model, of):
        return np.mean(model.predict((of.features - mean) / std) == of.labels)

    scores = {c: right(fresh(c), validation) for c in probes.STRENGTHS}
    chosen = probes.choose_strength(*examples[:2])
    assert scores[chosen] == pytest.approx(max(scores.values()), abs=0.015)
    classify = probes.fit("probe", *examples[:2])
    assert (
        np.mean(classify(test.features) == fresh(chosen).predict((test.features - mean) / std))
        > 0.98
    )
    assert len(probes.STRENGTHS) == 40


@pytest.fixture
def noise():
    """Two classes by many directions of which most say nothing: weak weights are best."""
    rng = np.random.default_rng(0)  # the best C of few chips is a matter of luck

    def make(count):
        labels = np.arange(count) % 2
        features = rng.normal(size=(count, 200))
        features[:, :20] += 0.4 * labels[:, None]
        return Examples(features, labels)

    return make


def test_without_validation_chips_it_is_chosen_within_those_it_learns_from(noise):
    train, test = noise(200), noise(2000)
    chosen = probes.choose_strength(train)

    def right(strength):
        model = LogisticRegression(C=strength, max_iter=5000).fit(*train)
        return np.mean(model.predict(test.features) == test.labels)

    assert right(chosen) > right(1.0) + 0.02
    train.labels[0] = 2  # a single chip: the others still leave a choice
    assert right(probes.choose_strength(train)) > right(1.0) + 0.02


def test_nothing_to_choose_by(noise):
    assert probes.choose_strength(Examples(np.eye(3), np.arange(3))) == 1.0
    unknown = noise(20)._replace(labels=np.full(20, -1))
    with pytest.raises(InputError, match=r"no chip of .*validation_split has a class"):
        probes.fit("probe", noise(20), unknown)


def test_neighbours_are_the_nearest_five_by_angle(examples):
    train, _, test = (e.known() for e in examples)

    def unit(features):
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    nearest = np.argsort(-unit(test.features) @ unit(train.features).T, axis=1)[:, :5]
    votes = np.stack([np.bincount(v, minlength=3) for v in train.labels[nearest]])
    clear = np.sort(votes)[:, -1] > np.sort(votes)[:, -2]
    got = probes.fit("knn", examples[0])(test.features)
    np.testing.assert_array_equal(got[clear], votes.argmax(axis=1)[clear])
    few = probes.fit("knn", Examples(train.features[:3], np.array([0, 1, 1])))
    assert set(few(test.features)) == {1}


@pytest.mark.parametrize("kind", PROBES)
def test_one_class_can_not_be_told_from_another(kind, rng):
    features = rng.normal(size=(6, 3))
    assert probes.fit(kind, Examples(features, np.array([2, 2, 2, -1, -1, 2]))) is None
    # A class with a single chip leaves nothing to validate by.
    assert probes.fit(kind, Examples(features, np.array([0, 0, 0, 1, -1, 0]))) is not None
