import numpy as np
import pandas as pd
import pytest
from tfds_nwrc import splits

from elev_ssl_jax.errors import InputError


def table(count, seed=0, pure=0.6, side=20):
    """Chips on a grid of half-overlapping windows, in blocks of 5 x 5 and two tiles."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(count), side)
    share = np.where(rng.random(count) < pure, 1.0, rng.uniform(0.5, 0.99, count))
    return pd.DataFrame(
        {
            "Image": [f"t/{i}/chip.npy" for i in range(count)],
            "tile": np.where(row < side // 2, "a", "b"),
            "block": [f"{r // 5}_{c // 5}" for r, c in zip(row, column, strict=True)],
            "label": rng.integers(0, 2, count),
            "share": share,
            "labelled": 1.0,
            "left": column * 50.0,
            "right": column * 50.0 + 100,
            "top": -row * 50.0,
            "bottom": -row * 50.0 - 100,
            "crs": "EPSG:32618",
        }
    )


def names(chips, positions):
    return {split: list(chips["Image"].iloc[rows]) for split, rows in positions.items()}


@pytest.mark.parametrize("classification", [True, False])
def test_full_data_give_the_papers_counts(classification):
    chips = table(42_744, side=200)
    positions = splits.assign(chips, classification=classification)
    assert {k: len(v) for k, v in positions.items()} == {
        "unlabeled": 36_800,
        "labeled": 3_000,
        "test": 2_944,
    }
    assert len(np.unique(np.concatenate(list(positions.values())))) == 42_744
    if classification:
        for split in ("labeled", "test"):
            assert (chips["share"].iloc[positions[split]] == 1).all()
        label = chips["label"].to_numpy()[positions["labeled"]]
        balance = np.cumsum(np.where(label == 1, 1, -1))
        assert np.abs(balance).max() <= 1


def test_the_same_files_give_the_same_splits_in_any_order():
    chips = table(500)
    shuffled = chips.sample(frac=1, random_state=1).reset_index(drop=True)
    for classification in (True, False):
        first = names(chips, splits.assign(chips, classification=classification))
        second = names(shuffled, splits.assign(shuffled, classification=classification))
        assert first == second


def test_a_rare_class_is_used_as_far_as_it_lasts():
    chips = table(500, pure=1.0)
    chips["label"] = (np.arange(500) % 25 == 0).astype(int)
    positions = splits.assign(chips, classification=True, num_labeled=100, num_test=50)
    label = chips["label"].to_numpy()[positions["labeled"]]
    ones = label.sum()
    assert 10 <= ones <= 20
    balance = np.abs(np.cumsum(np.where(label == 1, 1, -1)))
    assert balance[: 2 * ones].max() <= 1


@pytest.mark.parametrize("split_by", ["tile", "block"])
def test_groups_keep_neighbours_apart(split_by):
    chips = table(400)
    positions = splits.assign(
        chips, classification=False, split_by=split_by, num_labeled=40, num_test=30
    )
    assert len(positions["test"]) == 30
    assert len(positions["labeled"]) == 40
    test = chips.iloc[positions["test"]]
    train = chips.iloc[np.concatenate([positions["unlabeled"], positions["labeled"]])]
    assert not set(test[split_by]) & set(train[split_by])
    apart_x = np.abs(test["left"].to_numpy()[:, None] - train["left"].to_numpy()) >= 100
    apart_y = np.abs(test["top"].to_numpy()[:, None] - train["top"].to_numpy()) >= 100
    assert (apart_x | apart_y).all()


def test_chips_with_unlabelled_pixels_are_never_labeled_or_test():
    chips = table(300)
    chips.loc[::2, "labelled"] = 0.99
    positions = splits.assign(chips, classification=False)
    for split in ("labeled", "test"):
        assert (chips["labelled"].iloc[positions[split]] == 1).all()
    chips["labelled"] = 0.0  # no labels at all: held out for the elevation alone
    assert len(splits.assign(chips, classification=False)["test"]) == 21


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split_by": "moon"}, "--split-by"),
        ({"purity": 1.5, "classification": True}, "--purity"),
        ({"split_by": "tile", "num_test": 250}, "too few for 250"),
        ({"num_labeled": 200, "num_test": 250}, "need 450 chips"),
        ({"num_labeled": 0}, "at least one"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        splits.assign(table(400), **{"classification": False, **settings})


def test_too_few_pure_chips_say_how_pure_they_are():
    chips = table(400, pure=0.0)
    with pytest.raises(InputError, match=r"the purest chips: class 0: 9\d%, class 1: 9\d%"):
        splits.assign(chips, classification=True)
