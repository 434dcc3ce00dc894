"""What repeated measurements say: intervals, and which differences are more than noise.

Plain functions on arrays. Scores have the axes

  M methods, R repetitions, C fine-tunings within a repetition, Q metrics,

with NaN where a fine-tuning is missing. A repetition draws anew what is left to chance. The
fine-tunings within one share its pre-training, so that they are no evidence of their own: they are
averaged, and the repetitions are what is counted. A repetition's fine-tunings are the same ones for
every method (label draw, seed), so that methods are compared within a repetition. All repetitions
are judged by the same G blocks of test chips, whose own luck is seen by drawing blocks again.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from elev_ssl_jax import metrics

_MIN_BLOCKS = 5  # fewer say next to nothing about their spread
_RESAMPLES = 4000
_LEVEL = 0.05

Floats = NDArray[np.float64]


class Ground(NamedTuple):
    """The blocks of ground that the test chips lie in, and what scores others would have given."""

    blocks: int
    scores: Floats | None  # [M, R, C, Q, B]; None where the blocks are too few to tell


class Table(NamedTuple):
    """Scores of methods that are compared in it."""

    scores: Floats  # [M, R, C, Q]
    ground: Ground | None = None  # of the test; None if its blocks are not known
    resolution: float = 0.0  # a score's smallest step, one test chip

    def of(self, methods: Sequence[int]) -> "Table":
        """The same of some methods."""
        rows, ground = [*methods], self.ground
        if ground is not None and ground.scores is not None:
            ground = ground._replace(scores=ground.scores[rows])
        return self._replace(scores=self.scores[rows], ground=ground)


class Difference(NamedTuple):
    """How far one method is above another in one metric; methods and metrics are counted from 0."""

    one: int
    other: int
    metric: int
    repetitions: int  # that both methods have
    mean: float
    half: float  # of the 95 % interval over repetitions; NaN if there is one
    ground: Ground | None  # of the test, if it is known
    blocks: tuple[float, float] | None  # the 95 % interval over test blocks
    p: float  # adjusted for all comparisons of the table; NaN with a single repetition
    gaps: tuple[float, ...] = ()  # of each repetition
    p_alone: float = math.nan  # of this comparison by itself
    ends: tuple[float, float] = (math.nan, math.nan)  # the 95 % interval with both kinds of luck

    @property
    def more_than_noise(self) -> bool | None:
        """None where that can't be known: a single repetition, or too few blocks of test ground.

        Where the test ground is not known, the noise is that of repetitions alone.
        """
        if math.isnan(self.p):
            return None
        if self.p >= _LEVEL:
            return False
        if self.ground is not None and self.ground.scores is None:
            return None
        return self.blocks is None or self.blocks[0] > 0 or self.blocks[1] < 0


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN for a single value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan
    return mean, _quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)


def holm(p_values: np.ndarray) -> Floats:
    """P-values adjusted for their number (Holm 1979), whatever their dependence; NaN stays.

    Rejecting those below 5 % then rejects any true hypothesis with a probability of 5 % at most.
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return adjusted


def repetition_means(scores: Floats) -> Floats:
    """Scores [R, C, ...] averaged over the fine-tunings that are there: [R', ...], R' <= R."""
    return np.stack([rows[there].mean(axis=0) for rows in scores if (there := _there(rows)).any()])


def compare(table: Table, pairs: Sequence[tuple[int, int]] | None = None) -> list[Difference]:
    """Pairs of methods in every metric, by the fine-tunings that both have.

    P-values are of Student's t over the repetitions' mean differences. Where the test's blocks are
    known, what they add to the variance is added, and the degrees of freedom are the fewer of the
    two: a difference then has to stand out from both kinds of luck at once, while a test against
    each by itself passes too often when they are alike in size. A sum of two such variances with
    the fewer degrees is never too bold (Mickey and Brown 1966). P-values are adjusted by Holm's
    method for all pairs and metrics.

    Repetitions that agree to the last test chip are not taken for free of noise: the variance is
    at least that of rounding to the table's resolution.

    Args:
      table: Its scores and its test ground, of the same fine-tunings.
      pairs: Of methods, one and the other; None is all there are.
    """
    scores, ground, resolution = table
    if pairs is None:
        pairs = [(one, other) for other, one in itertools.combinations(range(len(scores)), 2)]
    found = []
    resampled = None if ground is None else ground.scores
    there = np.asarray(np.isfinite(scores).all(axis=-1))  # [M, R, C]
    for one, other in pairs:
        shared = there[one] & there[other]
        if not shared.any():
            continue
        gaps = _shared_means(scores[one] - scores[other], shared)  # [R', Q]
        count = len(gaps)
        if resampled is not None:
            moved = _shared_means(resampled[one] - resampled[other], shared).mean(axis=0)  # [Q, B]
        for metric, values in enumerate(gaps.T):
            mean, half = interval(values)
            blocks, p, ends = None, math.nan, (math.nan, math.nan)
            error, freedom = 0.0, count - 1
            if ground is not None and resampled is not None:
                blocks, block_error = block_interval(moved[metric], ground.blocks)
                error, freedom = block_error**2, min(freedom, ground.blocks - 1)
            if count > 1:
                # A difference of two scores, each rounded: twice a step's square over 12.
                error = math.sqrt(error + max(values.var(ddof=1), resolution**2 / 6) / count)
                p = _two_sided(mean, error, freedom)
                ends = mean - _quantile(freedom) * error, mean + _quantile(freedom) * error
            of_each = tuple(values.tolist())
            found.append(
                Difference(
                    one, other, metric, count, mean, half, ground, blocks, p, of_each, p, ends
                )
            )
    return adjusted(found)


def pool(tables: Sequence[Table]) -> Table:
    """The mean of several tables of the same methods, repetitions and metrics: [M, R, 1, Q].

    A table counts by the fine-tunings that all its methods have, and a repetition where every table
    has some. Test ground is drawn anew in all tables at once, so that those of one data set are to
    come from the same seed of `resample`, and those of different ones from different seeds.
    """
    grounds = [table.ground for table in tables]
    ground = None
    if all(g is not None for g in grounds):
        drawn = [g.scores for g in grounds if g is not None]
        blocks = min(g.blocks for g in grounds if g is not None)
        if any(scores is None for scores in drawn):
            ground = Ground(blocks, None)
        else:
            its = [_whole_means(s, t.scores) for s, t in zip(drawn, tables, strict=True)]
            ground = Ground(blocks, np.mean(its, axis=0))
    steps = math.hypot(*(table.resolution for table in tables)) / len(tables)
    scores = np.mean([_whole_means(table.scores, table.scores) for table in tables], axis=0)
    return Table(scores, ground, steps)


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same with p-values that are adjusted for all of them, see `holm`."""
    p_values = holm(np.array([d.p_alone for d in differences]))
    return [d._replace(p=float(p)) for d, p in zip(differences, p_values, strict=True)]


class Summary(NamedTuple):
    """Several strata in one number for each method, each [M]."""

    mean: Floats  # interquartile
    low: Floats  # ends of its 95 % interval
    high: Floats


def summarise(strata: Sequence[Floats], *, draws: int = 1000, seed: int = 0) -> Summary:
    """Scores over several tasks as GEO-Bench has them (arXiv 2306.03831).

    In each stratum, a task with a number of labels, the lowest method's mean becomes 0 and the
    highest one's 1. A method's number is the mean of the middle half of its repetitions' means
    over all strata, however many fine-tunings each has. The interval is a stratified bootstrap's:
    repetitions are drawn again, the same in all strata since they share their pre-trainings, and in
    each of them its fine-tunings. With few repetitions it is too narrow; `compare` is what verdicts
    are made by.

    Args:
      strata: Of each its scores [M, R, C]; repetitions that lack one are left out.
      draws: Of the bootstrap.
      seed: The same seed draws the same.
    """
    whole = [np.isfinite(scores).all(axis=(0, 2)) for scores in strata]
    kept = np.logical_and.reduce(whole)
    if not kept.any():
        nothing = np.full(len(strata[0]), math.nan)
        return Summary(nothing, nothing, nothing)
    strata = [_normalised(scores[:, kept]) for scores in strata]
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, len(strata[0])))
    for i in range(draws):
        rows = rng.integers(kept.sum(), size=kept.sum())[:, None]
        some = [s[:, rows, rng.integers(s.shape[2], size=(len(rows), s.shape[2]))] for s in strata]
        drawn[i] = _interquartile_mean(some)
    low, high = np.quantile(drawn, (_LEVEL / 2, 1 - _LEVEL / 2), axis=0)
    return Summary(_interquartile_mean(strata), low, high)


def _normalised(scores):
    """[M, R, C]: 0 is the lowest of the methods' means, 1 the highest."""
    means = scores.mean(axis=(1, 2))
    return (scores - means.min()) / max(means.max() - means.min(), 1e-12)


def _interquartile_mean(strata):
    """Of each method's repetitions in all strata [M, R, C]: [M]."""
    together = np.concatenate([s.mean(axis=2) for s in strata], axis=1)
    return stats.trim_mean(together, 0.25, axis=1)


def resample(
    matrices: NDArray[np.int64],
    names: tuple[str, ...],
    *,
    presence: bool = False,
    draws: int = _RESAMPLES,
    seed: int = 0,
) -> Ground:
    """Scores on test blocks drawn with replacement, the same draws for every fine-tuning.

    Args:
      matrices: Confusion matrices [M, R, C, G, K, K] of the G blocks; zeros where a fine-tuning is
        missing.
      names: Of the Q metrics, keys of `metrics.scores`.
      presence: Whether the matrices, [M, R, C, G, K, 2, 2], and the metrics are those of
        `metrics.presence_scores`.
      draws: B, how often.
      seed: The same seed draws the same blocks.
    """
    cells, blocks, shape = matrices.shape[:3], matrices.shape[3], matrices.shape[4:]
    score = metrics.presence_scores if presence else metrics.scores
    if blocks < _MIN_BLOCKS:
        return Ground(blocks, None)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=draws)  # [B, G]
    out = np.empty((*cells, len(names), draws))
    for cell in np.ndindex(*cells):  # one at a time: [B, K, K] of many classes is large
        flat = matrices[cell].reshape(blocks, -1).astype(np.float64)  # BLAS; exact below 2^53
        scores = score((times @ flat).reshape(draws, *shape))
        out[cell] = [scores[name] for name in names]
    return Ground(blocks, out)


def detectable(repetitions: int, comparisons: int) -> float:
    """The least difference with p < 0.05 whatever the others say, the test ground aside.

    In standard deviations of itself from one repetition to the next.
    """
    return _quantile(repetitions - 1, comparisons) / math.sqrt(repetitions)


def _there(rows):
    """Which fine-tunings of [C, ...] are there: [C]."""
    return ~np.isnan(rows.reshape(len(rows), -1)).any(axis=1)


def _shared_means(gaps, shared):
    """Over the shared fine-tunings of each repetition that has any: [R, C, ...] to [R', ...]."""
    return np.stack([gaps[r, shared[r]].mean(axis=0) for r in np.flatnonzero(shared.any(axis=1))])


def _whole_means(values, scores):
    """Over the fine-tunings of [M, R, C, ...] whose scores [M, R, C, Q] all methods have.

    [M, R, 1, ...], with NaN where a repetition has none.
    """
    means = np.full((*values.shape[:2], 1, *values.shape[3:]), math.nan)
    for r, there in enumerate(np.isfinite(scores).all(axis=(0, 3))):
        if there.any():
            means[:, r, 0] = values[:, r, there].mean(axis=1)
    return means


def _quantile(freedom, comparisons=1):
    """Student's t beyond which 5 %, shared among so many comparisons, lie on the two sides."""
    return float(special.stdtrit(freedom, 1 - _LEVEL / (2 * comparisons)))


def _two_sided(mean, error, freedom):
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(freedom, -abs(mean) / error))


def block_interval(values: Floats, blocks: int) -> tuple[tuple[float, float], float]:
    """The expanded percentile interval (Hesterberg 2015), and the standard error.

    A bootstrap of G blocks is too narrow, by sqrt(1 - 1 / G), and knows nothing of Student's t.
    Percentiles further out make up for both.

    Args:
      values: A score, or a difference of two, on each draw of the blocks, [B].
      blocks: How many there are, G.
    """
    widening = math.sqrt(blocks / (blocks - 1))
    tail = special.ndtr(-widening * _quantile(blocks - 1))
    values = values[~np.isnan(values)]
    low, high = np.quantile(values, (tail, 1 - tail))
    return (float(low), float(high)), widening * float(values.std())
