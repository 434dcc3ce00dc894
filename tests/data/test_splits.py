import numpy as np
import pandas as pd
import pytest

from elev_ssl_jax.data import splits
from elev_ssl_jax.errors import InputError


def table(count, seed=0, pure=0.6, side=20):
    """Chips on a grid of half-overlapping windows, in blocks of 5 x 5 and two tiles."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(count), side)
    share = np.where(rng.random(count) < pure, 1.0, rng.uniform(0.5, 0.99, count))
    return pd.DataFrame(
        {
            "key": [f"t/{i}/chip.npy" for i in range(count)],
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
    return {split: list(chips["key"].iloc[rows]) for split, rows in positions.items()}


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
        ({"split_by": "tile", "num_test": 250}, "too few for 250.*--split-by block"),
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


def test_chips_that_are_labelled_in_part_say_to_which_share():
    chips = table(400)
    chips["labelled"] = np.linspace(0.2, 0.6, len(chips))
    with pytest.raises(InputError, match=r"--coverage 0.9: .* the most is 60%"):
        splits.assign(chips, classification=False, coverage=0.9)
    positions = splits.assign(chips, classification=False, coverage=0.5)
    assert (chips["labelled"].iloc[positions["test"]] >= 0.5).all()


@pytest.mark.parametrize(
    ("classification", "asked"), [(False, "--coverage 1"), (True, "--coverage 1, --purity 1")]
)
def test_that_few_chips_are_labelled_whole_is_said(classification, asked):
    chips = table(400).assign(share=1.0)
    ask = {"classification": classification, "split_by": "random", "allow_overlap": True}
    assert "only" not in splits.split_chips(chips, **ask)[1]
    chips["labelled"] = np.where(np.arange(400) < 20, 1.0, 0.9)
    positions, said = splits.split_chips(chips, **ask)
    assert len(positions["labeled"]) + len(positions["test"]) <= 20
    assert f"\nonly 20 of 400 chips are labelled enough for labeled and test ({asked})" in said
    assert "only" not in splits.split_chips(chips, **ask, num_labeled=5, num_test=5)[1]
    assert "only" not in splits.split_chips(chips, **ask, coverage=0.9)[1]


def apart(count, **changes):
    """Chips side by side."""
    chips = table(count, **changes)
    for name in ("left", "right"):
        chips[name] = chips[name] * 2 + (100 if name == "left" else 0)
    for name in ("top", "bottom"):
        chips[name] = chips[name] * 2 + (100 if name == "bottom" else 0)
    chips["left"], chips["right"] = chips["left"] - 100, chips["left"]
    chips["bottom"] = chips["top"] - 100
    return chips


def test_how_to_split_follows_from_the_ground():
    unknown = table(100).drop(columns="crs")
    assert splits.choose(unknown, None)[0] == "random"
    assert "can't be told" in splits.choose(unknown, None)[1]
    assert splits.choose(unknown, "random")[0] == "random"

    assert splits.choose(apart(100), None) == ("random", "no chips share ground")
    assert splits.choose(apart(100), "random")[0] == "random"

    split_by, why = splits.choose(table(100), None)
    assert split_by == "block"
    assert "100 of 100 chips share ground" in why
    assert splits.choose(table(100), "tile") == ("tile", "")
    with pytest.raises(InputError, match=r"100 of 100 chips share .*--allow-overlap"):
        splits.choose(table(100), "random")
    assert splits.choose(table(100), "random", allow_overlap=True)[0] == "random"
    for other in (None, "block"):
        with pytest.raises(InputError, match="--allow-overlap is for --split-by random"):
            splits.choose(table(100), other, allow_overlap=True)


def test_the_share_of_seen_ground_is_told():
    chips = table(400)
    seen = splits.assign(chips, classification=False, num_labeled=40, num_test=30)
    line = splits.shared_ground(chips, seen)
    assert line.startswith("30 of 30 test chips share ground with a training chip (100.0%), ")
    assert " 0 with a labeled one (0.0%)" not in line
    kept = splits.assign(chips, classification=False, split_by="block", num_labeled=40, num_test=30)
    blocks = chips["block"].iloc[kept["test"]].nunique()
    assert splits.shared_ground(chips, kept) == (
        "0 of 30 test chips share ground with a training chip (0.0%), 0 with a labeled one (0.0%); "
        f"they lie in {blocks} blocks"
    )
    assert blocks > 1
    assert "can't be told" in splits.shared_ground(chips.drop(columns="left"), kept)


def test_a_test_chip_across_180_degrees_leaves_its_latitude_in_training():
    count = 60
    left = np.concatenate([[179.95], np.linspace(-170, 170, count - 1)])
    chips = pd.DataFrame(
        {
            "key": [f"t/{i}/chip.npy" for i in range(count)],
            "tile": ["east", *["rest"] * (count - 1)],
            "block": "b",
            "label": 0,
            "share": 1.0,
            "labelled": 1.0,
            "left": left,
            "right": left + 0.1,
            "bottom": 10.0,
            "top": 10.1,
            "crs": "EPSG:4326",
        }
    )
    chips.loc[1, ["left", "right", "crs"]] = -179.97, -179.9, "EPSG:4326"  # shows the same ground
    # Two systems, so that all are compared in degrees.
    from pyproj import Transformer

    x, y = Transformer.from_crs(4326, 32630, always_xy=True).transform(-3, 10.0)
    bounds = ["left", "right", "bottom", "top", "crs"]
    chips.loc[2, bounds] = x, x + 10_000, y, y + 10_000, "EPSG:32630"
    chips = chips.sort_values("tile", kind="stable").reset_index(drop=True)
    positions = {"test": np.array([0]), "labeled": np.array([5]), "unlabeled": np.arange(1, 60)}
    assert splits.shared_ground(chips, positions).startswith("1 of 1 test chips share")
    train = np.arange(1, 60)
    from elev_ssl_jax.data import ground

    assert list(train[ground.shared(chips, train, np.array([0]))]) == [1]


@pytest.mark.parametrize("stride", [64, 32])
@pytest.mark.parametrize("counts", [{}, {"num_labeled": 20, "num_test": 20}])
@pytest.mark.parametrize("flip", [False, True])
def test_a_small_scene_splits_by_block_as_it_comes(stride, counts, flip):
    height, width, size = (485, 373, 64) if flip else (373, 485, 64)
    if stride == 64 and counts:
        counts = {"num_labeled": 10, "num_test": 10}  # there are 35 chips
    block = max(size, min(height, width) // 5)  # as `chips` has it
    rows = []
    for top in range(0, height - size + 1, stride):
        for left in range(0, width - size + 1, stride):
            rows.append(
                {
                    "key": f"s/s_{top // block}_{left // block}/({top}, {left})/chip.npy",
                    "tile": "s",
                    "block": f"s/s_{top // block}_{left // block}",
                    "label": 0,
                    "share": 1.0,
                    "labelled": 1.0,
                    "left": left * 10.0,
                    "right": (left + size) * 10.0,
                    "bottom": -(top + size) * 10.0,
                    "top": -top * 10.0,
                    "crs": "EPSG:32618",
                }
            )
    chips = pd.DataFrame(rows)
    positions = splits.assign(chips, classification=False, split_by="block", **counts)
    assert len(positions["test"]) == counts.get("num_test", round(len(chips) * 2944 / 42744))
    assert len(positions["unlabeled"]) > len(chips) / 5
    assert splits.shared_ground(chips, positions).startswith("0 of")
