"""Which chip goes into which split. The same files always give the same answer.

The full data (42,744 chips) give 36,800 `unlabeled`, 3,000 `labeled` and 2,944 `test`, as in
sections 4.1 and 4.2 of the paper; a smaller folder gives the same proportions.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from elev_ssl_jax.data import ground
from elev_ssl_jax.errors import InputError

FULL, LABELED, TEST = 42_744, 3_000, 2_944
GROUPS = ("scene", "tile", "block")  # that lie within one another


def choose(
    chips: pd.DataFrame, split_by: str | None, *, allow_overlap: bool = False
) -> tuple[str, str]:
    """How to split, and why: no ground in test and training both, unless that is asked for.

    Args:
      chips: As in `assign`.
      split_by: What was asked for; None leaves it to the chips: "random" if they share no ground,
        or nothing is known of it, "block" if they do.
      allow_overlap: Whether "random" will do though chips share ground.

    Raises:
      InputError: "random" was asked for, chips share ground, and that was not allowed.
    """
    if allow_overlap and split_by != "random":
        raise InputError("--allow-overlap is for --split-by random, which must be given too")
    if split_by == "tile" and "tile" not in chips:
        split_by = "scene"  # of the NWRC data the tile is what the scene is of others
    if split_by not in (None, "random"):
        return str(split_by), ""
    if not ground.is_known(chips):
        return "random", "the chips have no bounds, so which of them share ground can't be told"
    every = np.arange(len(chips))
    overlapping = int(ground.shared(chips, every, every).sum())
    if not overlapping:
        return "random", "no chips share ground"
    share = f"{overlapping} of {len(chips)} chips share ground with another"
    if split_by is None:
        return "block", f"{share}; whole blocks are kept for the test"
    if not allow_overlap:
        raise InputError(
            f"--split-by random: {share}, so that the test would show ground of the training; "
            "leave --split-by out, or add --allow-overlap"
        )
    return "random", f"{share}, as allowed"


def split_chips(
    chips: pd.DataFrame,
    *,
    classification: bool,
    split_by: str | None = None,
    allow_overlap: bool = False,
    **settings: Any,
) -> tuple[Mapping[str, np.ndarray], str]:
    """`assign` as `choose` says, and lines on what was left to the chips.

    That is how they are split, and that fewer of them qualify than is usual.
    """
    split_by, why = choose(chips, split_by, allow_overlap=allow_overlap)
    positions = assign(chips, classification=classification, split_by=split_by, **settings)
    lines = [f"--split-by {split_by}: {why}"] if why else []
    if settings.get("num_labeled") is None and settings.get("num_test") is None:
        lines += _shortage(chips, positions, classification, **settings)
    return positions, "\n".join(lines)


def shared_ground(chips: pd.DataFrame, positions: Mapping[str, np.ndarray]) -> str:
    """A line on how many test chips share ground with the others, and in how many blocks they lie.

    Args:
      chips: As in `assign`.
      positions: What `assign` returned.
    """
    test, labeled = positions["test"], positions["labeled"]
    if not ground.is_known(chips):
        return (
            f"whether the {len(test)} test chips share ground with training chips can't be told: "
            "they have no bounds"
        )
    train = np.concatenate([positions["unlabeled"], labeled])
    with_train, with_labeled = (ground.shared(chips, test, others) for others in (train, labeled))
    blocks = chips["block"].iloc[test].nunique()
    return (
        f"{with_train.sum()} of {len(test)} test chips share ground with a training chip "
        f"({with_train.mean():.1%}), {with_labeled.sum()} with a labeled one "
        f"({with_labeled.mean():.1%}); they lie in {blocks} block{'s' * (blocks != 1)}"
    )


def assign(
    chips: pd.DataFrame,
    *,
    classification: bool,
    purity: float = 1.0,
    coverage: float = 1.0,
    split_by: str = "random",
    num_labeled: int | None = None,
    num_test: int | None = None,
) -> Mapping[str, np.ndarray]:
    """Positions in `chips` of the chips of `unlabeled`, `labeled` and `test`, in order.

    Within a split the order is that of a hash of the chips' paths, so that any slice is a random
    sample. For classification the classes of `labeled` alternate while both last: every prefix is
    balanced to within one chip.

    Args:
      chips: A row for each chip, with `key` (a text of its own), the groups that it lies in
        (`scene`, `tile`, `block`), and if known `label` (its commonest class), `share` (of that
        class) and `labelled` (share of pixels with a label or quantity), `left`, `bottom`,
        `right`, `top` and `crs`.
      classification: Whether `labeled` and `test` take only chips of (nearly) one class.
      purity: The least `share` of such a chip.
      coverage: The least `labelled` of a chip of `labeled` or `test`.
      split_by: What `choose` says: "random", or one of the groups: then whole scenes, tiles or
        blocks go to `test`, what is left of them is left out, and so is every other chip that
        overlaps a test chip.
      num_labeled: Chips in `labeled`; in proportion by default.
      num_test: Chips in `test`; in proportion by default.

    Raises:
      InputError: A setting is impossible, or too few chips qualify.
    """
    groups = [name for name in GROUPS if name in chips]
    if split_by not in ("random", *groups):
        allowed = ", ".join(["random", *groups])
        raise InputError(f"--split-by is {split_by!r}; these chips have {allowed}")
    for name, value in (("purity", purity), ("coverage", coverage)):
        if not 0 < value <= 1:
            raise InputError(f"--{name} is {value}; it must lie in (0, 1]")
    eligible = _eligible(chips, classification, purity, coverage)
    num_labeled, num_test = _counts(len(chips), eligible, num_labeled, num_test)

    order = in_order_of_hashes(chips["key"])
    if split_by == "random":
        test = order[eligible[order]][:num_test]
        train = order[~np.isin(order, test)]
    else:
        test, train = _split_groups(chips, chips[split_by], order, eligible, num_test, split_by)

    candidates = train[eligible[train]]
    if classification:
        label = chips["label"].to_numpy()[candidates]
        turn = np.zeros(len(candidates))
        for value in np.unique(label):
            turn[label == value] = np.arange((label == value).sum())
        candidates = candidates[np.lexsort((label, turn))]
    labeled = candidates[:num_labeled]
    if len(labeled) < num_labeled:
        raise InputError(
            f"--labeled is {num_labeled}, but outside the test {split_by}s only {len(labeled)} "
            "chips qualify; ask for fewer"
        )
    return {"unlabeled": train[~np.isin(train, labeled)], "labeled": labeled, "test": test}


def _shortage(chips, positions, classification, *, purity=1.0, coverage=1.0, **_):
    """Why `labeled` and `test` are smaller than in proportion, if they are: a line or none."""
    if len(positions["labeled"]) + len(positions["test"]) >= sum(_in_proportion(len(chips))):
        return []
    few = int(_eligible(chips, classification, purity, coverage).sum())
    asked = f"--coverage {coverage:g}" + f", --purity {purity:g}" * classification
    return [
        f"only {few} of {len(chips)} chips are labelled enough for labeled and test ({asked}); "
        "a lower share takes more"
    ]


def _in_proportion(total):
    return round(total * LABELED / FULL), round(total * TEST / FULL)


def _eligible(chips, classification, purity, coverage):
    """Which chips may go to `labeled` or `test`: bool [len(chips)]."""
    labelled = np.zeros(len(chips), bool)
    if "labelled" in chips:
        labelled = (chips["labelled"] >= coverage).to_numpy()
    if classification and "label" not in chips:
        raise InputError("the chips have no labels; cut them with --labels, or use segmentation")
    if not labelled.any() and "labelled" in chips and (most := chips["labelled"].max()):
        raise InputError(
            f"--coverage {coverage:g}: no chip is labelled to such a share; the most is {most:.0%}"
        )
    if not classification:
        # Without any labels the elevation can still be evaluated on held-out chips.
        return labelled if labelled.any() else np.ones(len(chips), bool)
    pure = labelled & (chips["share"] >= purity).to_numpy()
    classes = chips["label"][pure].nunique()
    if classes < 2:
        purest = chips["share"][labelled].groupby(chips["label"][labelled]).max()
        best = ", ".join(f"class {c}: {share:.0%}" for c, share in purest.items())
        raise InputError(
            f"--purity {purity} leaves chips of {classes} class{'es' * (classes != 1)}; two are "
            f"needed (the purest chips: {best or 'none is labelled'}); lower --purity or use "
            "--config segmentation"
        )
    return pure


def _counts(total, eligible, num_labeled, num_test):
    labeled, test = _in_proportion(total)
    labeled = labeled if num_labeled is None else num_labeled
    test = test if num_test is None else num_test
    available = int(eligible.sum())
    if labeled + test > available and num_labeled is None and num_test is None:
        # Too few chips are pure enough: share them out in the same proportion.
        labeled, test = (n * available // (labeled + test) for n in (labeled, test))
    if labeled + test > available:
        raise InputError(
            f"--labeled {labeled} and --test {test} need {labeled + test} chips, but only "
            f"{available} of {total} qualify"
        )
    if labeled < 1 or test < 1 or total - labeled - test < 1:
        raise InputError(
            f"{total} chips give {total - labeled - test} unlabeled, {labeled} labeled and {test} "
            "test; each needs at least one: set --labeled and --test, or cut more chips"
        )
    return labeled, test


def in_order_of_hashes(names: Iterable[str]) -> np.ndarray:
    """Positions of the names, in an order as good as random, and the same for the same names."""
    hashes = [_hash(name) for name in names]
    return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), int)


def _hash(name):
    return hashlib.sha256(name.encode()).digest()


def _split_groups(chips, group, order, eligible, num_test, split_by):
    """Whole groups to test until it is full; train is what lies elsewhere and overlaps no test."""
    names = sorted(group.unique(), key=_hash)
    chosen: list[str] = []
    while names and eligible[group.isin(chosen)].sum() < num_test:
        chosen.append(names.pop(0))
    if not names:
        smaller = "cut with a smaller --block" if split_by == "block" else "use --split-by block"
        raise InputError(
            f"--split-by {split_by}: {group.nunique()} {split_by}(s) are too few for {num_test} "
            f"test chips and any training; ask for fewer --test chips, or {smaller}"
        )
    inside = group.isin(chosen).to_numpy()
    test = order[(eligible & inside)[order]][:num_test]
    train = order[~inside[order]]
    if ground.is_known(chips):
        train = train[~ground.shared(chips, train, test)]
    if not len(train):
        raise InputError(f"--split-by {split_by} leaves no chip for training; use smaller groups")
    return test, train
