import numpy as np
import pytest
from scipy import stats

from elev_ssl_jax import metrics
from elev_ssl_jax.reporting import evidence

NAMES = ("accuracy", "macro_f1")
METHODS = 4


def flagged(scores, ground=None):
    return [d for d in evidence.compare(evidence.Table(scores, ground)) if d.more_than_noise]


def make_scores(rng, repetitions, *, pretraining, spreads=(1, 1, 1, 1), seeds=4):
    """Scores [4, R, C, 2] of methods alike; two metrics that say nearly the same."""

    def draw(*shape):
        values = rng.normal(size=(*shape, 2))
        values[..., 1] = 0.9 * values[..., 0] + np.sqrt(1 - 0.9**2) * values[..., 1]
        return values

    own = draw(METHODS, repetitions, seeds) + pretraining * draw(METHODS, repetitions, 1)
    return np.array(spreads)[:, None, None, None] * own + draw(1, repetitions, seeds)


@pytest.mark.parametrize("spreads", [(1, 1, 1, 1), (1, 1, 2, 4)])
@pytest.mark.parametrize("pretraining", [0, 0.5, 1])  # its spread, that of seeds being 1
def test_of_tables_without_any_difference_at_most_5_percent_flag_one(spreads, pretraining):
    rng = np.random.default_rng(5)
    tables = (make_scores(rng, 5, pretraining=pretraining, spreads=spreads) for _ in range(1000))
    assert np.mean([bool(flagged(table)) for table in tables]) <= 0.05


def make_matrices(rng, repetitions, blocks, pretraining, ground):
    """Confusion matrices [4, R, 1, G, 2, 2] of methods alike, each with ground that suits it."""
    accuracy = 80 + ground * rng.normal(size=(METHODS, 1, 1, blocks))
    accuracy = accuracy + pretraining * rng.normal(size=(METHODS, repetitions, 1, 1))
    accuracy = accuracy + 4 * rng.normal(size=(1, 1, 1, blocks))  # hard for every method
    right = np.rint(np.clip(accuracy, 1, 99) * 10).astype(np.int64)
    rows = [np.stack([right, 1000 - right], -1), np.stack([1000 - right, right], -1)]
    return np.stack(rows, axis=-2)


def scores_of(matrices):
    scores = metrics.scores(matrices.sum(axis=3))
    return np.stack([scores[name] for name in NAMES], axis=-1)


@pytest.mark.parametrize(("pretraining", "ground"), [(1, 0), (0.3, 1), (0.05, 3)])
def test_nor_do_they_where_it_is_the_test_ground_that_favours_a_method(pretraining, ground):
    rng = np.random.default_rng(5)
    flags = without = 0
    for _ in range(150):
        matrices = make_matrices(rng, 5, 6, pretraining, ground)
        scores = scores_of(matrices)
        flags += bool(flagged(scores, evidence.resample(matrices, NAMES, draws=300)))
        without += bool(flagged(scores))
    assert flags <= 0.05 * 150
    assert not ground or without > 0.2 * 150  # repetitions alone don't see it


def test_too_few_blocks_of_test_ground_give_no_verdict():
    rng = np.random.default_rng(5)
    passed = 0
    for _ in range(50):
        matrices = make_matrices(rng, 5, 3, 0.05, 3)
        scores, ground = scores_of(matrices), evidence.resample(matrices, NAMES)
        assert not flagged(scores, ground)
        passed += any(
            d.more_than_noise is None for d in evidence.compare(evidence.Table(scores, ground))
        )
    assert passed > 25  # repetitions alone would flag a pair in most of them


def test_a_large_difference_is_found(rng):
    found = 0
    for _ in range(20):
        scores = make_scores(rng, 5, pretraining=0.5)
        scores[1] += 8
        flags = {(d.one, d.other, d.metric) for d in flagged(scores)}
        found += {(1, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)} <= flags
    assert found >= 18
    matrices = make_matrices(rng, 5, 12, 0.2, 0.2)
    matrices[1] = make_matrices(rng, 5, 12, 0.2, 0.2)[1] @ np.array([[0, 1], [1, 0]])
    differences = evidence.compare(
        evidence.Table(scores_of(matrices), evidence.resample(matrices, NAMES))
    )
    assert all(d.more_than_noise == (1 in (d.one, d.other)) for d in differences)


def test_the_interval_is_students(rng):
    values = rng.normal(size=7)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    mean, half = evidence.interval(values)
    np.testing.assert_allclose([mean - half, mean + half], [low, high])
    assert np.isnan(evidence.interval(np.array([3.0]))[1])


def test_p_values_are_of_the_paired_t_test_and_adjusted_by_holm(rng):
    scores = make_scores(rng, 6, pretraining=1)
    differences = evidence.compare(evidence.Table(scores))
    means = scores.mean(axis=2)
    p = [
        stats.ttest_rel(means[d.one, :, d.metric], means[d.other, :, d.metric]).pvalue
        for d in differences
    ]
    running, adjusted = 0.0, np.empty(len(p))
    for rank, i in enumerate(np.argsort(p)):
        running = max(running, (len(p) - rank) * p[i])
        adjusted[i] = min(running, 1)
    np.testing.assert_allclose([d.p for d in differences], adjusted)
    assert evidence.holm(np.array([0.01, np.nan, 0.04])).tolist()[::2] == [0.02, 0.04]


def test_only_what_both_have_is_compared_and_nobody_loses_by_it(rng):
    scores = make_scores(rng, 3, pretraining=1)
    whole = {(d.one, d.other, d.metric): d for d in evidence.compare(evidence.Table(scores))}
    scores[3, 1:] = np.nan  # one repetition of the last method,
    scores[2, 1, 0] = np.nan  # and a fine-tuning of another is missing
    some = {(d.one, d.other, d.metric): d for d in evidence.compare(evidence.Table(scores))}
    assert some[1, 0, 0].mean == whole[1, 0, 0].mean
    assert not np.isnan(some[1, 0, 0].p)
    assert some[3, 0, 0].repetitions == 1
    assert np.isnan(some[3, 0, 0].p)
    assert not some[3, 0, 0].more_than_noise
    expected = np.mean([(scores[2, r] - scores[0, r])[r == 1 :].mean(axis=0) for r in range(3)], 0)
    np.testing.assert_allclose(some[2, 0, 0].mean, expected[0])
    scores[1] = np.nan  # a method without any
    assert {d.one for d in evidence.compare(evidence.Table(scores))} == {2, 3}
    assert len(evidence.repetition_means(scores[2])) == 3
    assert len(evidence.repetition_means(scores[3])) == 1


def test_differences_that_do_not_vary_have_numbers_too():
    scores = np.full((3, 3, 2, 1), 90.0)
    scores[2] += 1  # one chip of a hundred, three times
    differences = evidence.compare(evidence.Table(scores, resolution=1.0))
    assert all(np.isfinite([d.mean, d.half, d.p]).all() for d in differences)
    assert not any(d.more_than_noise for d in differences)
    scores[2] += 40
    assert [
        d.more_than_noise for d in evidence.compare(evidence.Table(scores, resolution=1.0))
    ] == [
        False,
        True,
        True,
    ]
    assert [d.p for d in evidence.compare(evidence.Table(scores))] == [1, 0, 0]


def test_blocks_are_drawn_alike_for_all_and_weigh_as_their_chips_do():
    rng = np.random.default_rng(0)
    matrices = make_matrices(rng, 2, 7, 1, 1)
    matrices[1] = matrices[0]
    resampled = evidence.resample(matrices, NAMES, draws=50)
    assert resampled.blocks == 7
    np.testing.assert_array_equal(resampled.scores[0], resampled.scores[1])
    times = np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), size=50)
    matrix = sum(n * m for n, m in zip(times[9], matrices[2, 1, 0], strict=True))
    np.testing.assert_allclose(resampled.scores[2, 1, 0, 0, 9], metrics.accuracy(matrix))
    np.testing.assert_allclose(resampled.scores[2, 1, 0, 1, 9], metrics.macro_f1(matrix))


@pytest.mark.parametrize("blocks", [5, 12])
def test_the_interval_over_blocks_holds_the_truth_as_often_as_it_says(blocks):
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        matrices = make_matrices(rng, 1, blocks, 0, 2)[:2]
        ground = evidence.resample(matrices, NAMES, draws=500)
        low, high = evidence.compare(evidence.Table(scores_of(matrices), ground))[0].blocks
        held += low <= 0 <= high
    assert 0.92 <= held / 300 <= 0.99


def test_a_pool_is_the_mean_of_its_tables_with_the_luck_of_each(rng):
    here, there = (evidence.Table(make_scores(rng, 5, pretraining=1)[:2]) for _ in range(2))
    (pooled, _), (one, _), (other, _) = (
        evidence.compare(table) for table in (evidence.pool([here, there]), here, there)
    )
    gaps = (np.array(one.gaps) + other.gaps) / 2
    np.testing.assert_allclose(pooled.gaps, gaps)
    truth = stats.ttest_1samp(gaps, 0)
    assert pooled.p_alone == pytest.approx(truth.pvalue)
    np.testing.assert_allclose(pooled.ends, truth.confidence_interval())
    # What a table lacks of a repetition, all lack; of a fine-tuning, its table alone.
    there.scores[0, 4] = here.scores[1, 2, 0] = np.nan
    pooled = evidence.compare(evidence.pool([here, there]))[0]
    gaps = np.stack(
        [here.scores[1, :4] - here.scores[0, :4], there.scores[1, :4] - there.scores[0, :4]]
    )
    np.testing.assert_allclose(pooled.gaps, np.nanmean(gaps[..., 0], axis=2).mean(axis=0))
    assert pooled.repetitions == 4
    # Test ground that isn't known, or is too little, in one of them is so of all.
    matrices = make_matrices(rng, 5, 6, 1, 1)[:2]
    known = evidence.Table(scores_of(matrices), evidence.resample(matrices, NAMES, draws=50))
    assert evidence.pool([known, here]).ground is None
    few = known._replace(ground=evidence.Ground(3, None))
    assert evidence.pool([known, few]).ground == evidence.Ground(3, None)
    pooled, alone = (evidence.compare(evidence.pool(t))[0] for t in ([known, known], [known]))
    assert pooled.ends == pytest.approx(alone.ends)  # the same ground twice says no more than once


def test_the_interval_of_a_pool_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(300):
        tables = []
        for seed in (0, 1):
            matrices = make_matrices(rng, 5, 6, 0.7, 2)[:2]
            ground = evidence.resample(matrices, NAMES, draws=300, seed=seed)
            tables.append(
                evidence.Table(
                    100 * scores_of(matrices), ground._replace(scores=100 * ground.scores)
                )
            )
        low, high = evidence.compare(evidence.pool(tables))[0].ends
        held += low <= 0 <= high
    assert 0.94 <= held / 300 <= 1


def test_pairs_that_are_asked_for_are_the_same_and_adjusted_for_their_own_number(rng):
    scores = make_scores(rng, 4, pretraining=1)
    every = {(d.one, d.other, d.metric): d for d in evidence.compare(evidence.Table(scores))}
    some = evidence.compare(evidence.Table(scores), [(2, 0), (1, 3)])
    assert [(d.one, d.other) for d in some] == [(2, 0)] * 2 + [(1, 3)] * 2
    for d in some:
        known = (d.one, d.other, d.metric) in every
        other = every[(*((d.one, d.other) if known else (d.other, d.one)), d.metric)]
        assert d.mean == pytest.approx(other.mean if known else -other.mean)
        assert d.p_alone == pytest.approx(other.p_alone)
        np.testing.assert_allclose(np.mean(d.gaps), d.mean)
    wanted = evidence.holm(np.array([d.p_alone for d in some]))
    np.testing.assert_allclose([d.p for d in some], wanted)


def test_tasks_are_summarised_by_the_middle_half_of_normalised_scores(rng):
    scores = [rng.normal(60, 5, (3, 4, 6)), rng.normal(30, 20, (3, 4, 2))]
    summary = evidence.summarise(scores)
    together = []
    for task in scores:
        means = task.mean(axis=(1, 2))
        low, high = means.min(), means.max()
        together.append(((task - low) / (high - low)).mean(axis=2))
    ordered = np.sort(np.concatenate(together, axis=1))
    # The lowest method of every task is at 0 up to rounding, which has no relative error.
    np.testing.assert_allclose(summary.mean, ordered[:, 2:6].mean(axis=1), rtol=1e-7, atol=1e-12)
    # A task counts as much as another, however many fine-tunings it has.
    one, other = np.arange(3.0)[:, None, None], np.arange(3.0)[::-1, None, None]
    both = evidence.summarise([np.tile(one, (1, 4, 1)), np.tile(other, (1, 4, 10))])
    np.testing.assert_allclose(both.mean, 0.5)
    assert (summary.low < summary.mean).all()
    assert (summary.mean < summary.high).all()
    # A repetition that a method or a task lacks is left out of all.
    scores[1][2, 3, 0] = np.nan
    less = evidence.summarise(scores)
    whole = evidence.summarise([task[:, :3] for task in scores])
    np.testing.assert_array_equal(less.mean, whole.mean)
    nothing = evidence.summarise([np.full((2, 1, 1), np.nan)])
    assert np.isnan(nothing.mean).all()


def test_the_summarys_interval_counts_what_a_pretraining_shares_once(rng):
    """All fine-tunings of a repetition say the same: as many as one likes are no evidence."""
    # Well apart: scores are told in units of what lies between the methods.
    shared = rng.normal([[[0.0]], [[8.0]]], 1, (2, 6, 1))
    few, many = (
        evidence.summarise([shared + 0.01 * rng.normal(size=(2, 6, count))]) for count in (2, 40)
    )
    widths = [summary.high - summary.low for summary in (few, many)]
    np.testing.assert_allclose(widths[0], widths[1], rtol=0.5)
