import json

import numpy as np
import pandas as pd
import pytest

from elev_ssl_jax import metrics
from elev_ssl_jax.config import comparison
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.reporting import compose

PAPER_SPLITS = {"unlabeled": 36_800, "labeled": 3_000, "test": 2_944}


def write_run(
    folder, accuracies, head="linear", *, splits=None, blocks=0, draws=0, total=100, changes=None
):
    """An experiment's folder with cells of given accuracies.

    `accuracies` are by method and labels, then [repetition][seed]. With `blocks`, every block has
    the same share of each cell's counts.
    """
    config = comparison(head)
    config.experiment.methods = tuple(accuracies)
    config.experiment.labels = tuple(next(iter(accuracies.values())))
    config.experiment.label_draws = draws
    config.update_from_flattened_dict(changes or {})
    (folder / "cells").mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort())
    if splits:
        (folder / "splits.json").write_text(json.dumps(splits))
    for method, by_labels in accuracies.items():
        for labels, repetitions in by_labels.items():
            for r, values in enumerate(repetitions):
                for s, right in enumerate(values):
                    write_cell(folder, method, labels, r, 1000 * r + s, right, blocks, total)
    return folder


def write_cell(folder, method, labels, repetition, seed, right, blocks=0, total=100):
    right = round(right * total / 100)
    matrix = np.array([[right, total - right], [total - right, right]])
    about = {"method": method, "labels": labels, "repetition": repetition, "draw": 0, "seed": seed}
    path = folder / "cells" / f"{'-'.join(map(str, about.values()))}.json"
    path.write_text(json.dumps(about | metrics.summary(matrix * max(blocks, 1))))
    if blocks:
        np.savez(
            path.with_suffix(".npz"),
            matrices=np.stack([matrix] * blocks),
            blocks=np.array([f"b{i}" for i in range(blocks)]),
        )


CLEAR = {
    "random": {
        80: [[70, 72], [71, 71], [70, 71], [72, 70], [71, 72]],
        200: [[75, 76], [76, 76], [75, 75], [77, 75], [75, 77]],
    },
    "simclr": {
        80: [[70, 73], [71, 72], [71, 71], [72, 73], [70, 71]],
        200: [[85, 86], [87, 86], [85, 84], [87, 86], [85, 86]],
    },
    "simclr_elev": {
        80: [[90, 91], [90, 92], [91, 91], [90, 90], [92, 91]],
        200: [[86, 86], [85, 86], [89, 84], [84, 86], [88, 85]],
    },
}


def test_a_report_says_who_wins_and_whether_that_is_noise(tmp_path):
    run = write_run(tmp_path, CLEAR, splits=PAPER_SPLITS)
    printed = compose.write(run)
    text = (run / "report.md").read_text()
    at_80, at_200 = text.split("## 80 labels")[1].split("## 200 labels")
    assert "SimCLR+Elevation has the highest accuracy: +19.40 points against SimCLR, " in at_80
    assert (
        "which is more than noise of pre-training (p < 0.001); +19.80 points against random"
        in at_80
    )
    assert "| random | 5 | 10 | 71.00 ± 0.44 | 87.73 |" in at_80  # the paper's number beside ours
    assert "SimCLR+Elevation has the highest accuracy: +0.20 points against SimCLR, " in at_200
    assert "which could be noise (p = " in at_200
    assert "| SimCLR+Elevation - random | accuracy | +19.80 | +1" in at_80
    assert "could be noise |" in at_80
    assert "87.73" not in at_200
    assert "adjusted (Holm) for all 6. Which chips of the test lie together isn't known" in at_80
    assert "5 pre-trainings of each method" in text
    assert "2 fine-tunings" in text
    assert "Not repeated: the labelled chips" in text
    assert "71.00" in printed
    assert "which is more than noise" in printed
    page = (run / "report.html").read_text()
    # Differences for each number of labels, curves, confusion.
    assert page.count("data:image/png;base64,") == 4
    assert "<table" in page
    table = pd.read_csv(run / "results.csv")
    assert list(table)[:5] == ["method", "labels", "repetition", "draw", "seed"]
    assert len(table) == 60


def test_one_pre_training_has_no_verdict_however_many_its_seeds(tmp_path):
    seeds = {"random": {50: [[70, 71, 70, 71]]}, "glcnet": {50: [[90, 91, 91, 90]]}}
    text_of(write_run(tmp_path / "a", seeds, head="unet"))
    text = (tmp_path / "a" / "report.md").read_text()
    assert (
        "GLCNet has the highest macro F1; one pre-training a method says nothing about noise."
        in text
    )
    assert "±" not in text
    assert "more than noise" not in text
    assert "paper" not in text.split("## 50 labels")[1].split("##")[0]  # its labels were 80


def text_of(run):
    compose.write(run)
    return (run / "report.md").read_text()


@pytest.mark.parametrize("splits", [None, {"unlabeled": 257, "labeled": 80, "test": 120}])
def test_the_papers_numbers_stand_beside_its_own_data_only(tmp_path, splits):
    run = write_run(tmp_path / "other", CLEAR, splits=splits)
    assert "paper" not in text_of(run)
    assert "87.73" in text_of(write_run(tmp_path / "nwrc", CLEAR, splits=PAPER_SPLITS))
    for field, value in (("model.encoder", "resnet34"), ("augment.crop_size", 96)):
        changes = {field: value}
        run = write_run(tmp_path / field, CLEAR, splits=PAPER_SPLITS, changes=changes)
        assert "paper" not in text_of(run)


def test_a_method_with_fewer_repetitions_deletes_nobodys_differences(tmp_path):
    run = write_run(tmp_path, {m: {80: CLEAR[m][80]} for m in ("random", "simclr_elev")})
    before = text_of(run)
    line = next(row for row in before.splitlines() if "| accuracy | +19.80 |" in row)
    config = json.loads((run / "config.json").read_text())
    config["experiment"]["methods"] = ["random", "simclr", "simclr_elev"]
    (run / "config.json").write_text(json.dumps(config))
    write_cell(run, "simclr", 80, 1, 1001, 72)
    after = text_of(run)
    assert line in after
    assert "| SimCLR | 1 | 1 | 72.00 |" in after
    assert "| SimCLR - random | accuracy | +1.00 |  |  | not known: one pre-training |" in after
    assert "+20.00 points against SimCLR, of which one pre-training in common says" in after
    assert "+19.80 points against random, which is more than noise of pre-training" in after


def test_a_difference_that_does_not_vary_has_no_nan(tmp_path):
    same = {m: {80: [[70], [70], [70]]} for m in ("random", "elevation")}
    same["simclr"] = {80: [[71], [71], [71]]}
    text = text_of(write_run(tmp_path / "a", same))
    assert "nan" not in text.lower()
    assert "which could be noise" in text  # two chips of two hundred, three times
    equal = {"random": {80: [[70], [70], [70]]}, "simclr": {80: [[70], [70], [70]]}}
    text = text_of(write_run(tmp_path / "b", equal))
    assert "+0.00 points" in text
    assert "nan" not in text.lower()


def test_the_test_grounds_luck_is_in_it_or_said_to_be_missing(tmp_path):
    some = {m: {80: CLEAR[m][80]} for m in ("random", "simclr_elev")}
    text = text_of(write_run(tmp_path / "few", some, blocks=4))
    assert (
        "The test chips lie in 4 blocks only, so that the luck of the test ground is in none"
        in text
    )
    assert "which is not known: the test lies in 4 blocks (p < 0.001)" in text
    assert "more than noise" not in text
    assert "over test blocks" not in text
    text = text_of(write_run(tmp_path / "unknown", some))
    assert "Which chips of the test lie together isn't known, so that" in text
    assert "which is more than noise of pre-training (p < 0.001)" in text
    text = text_of(write_run(tmp_path / "many", some, blocks=6))
    assert "| over test blocks |" in text
    assert "The 6 blocks of test chips are drawn again" in text
    assert "which is more than noise" in text
    # The same means, but all of the difference lies in one block.
    for path in (tmp_path / "many" / "cells").glob("simclr_elev-*.npz"):
        cell = dict(np.load(path))
        other = path.with_name(path.name.replace("simclr_elev", "random"))
        gain = cell["matrices"].sum(axis=0) - np.load(other)["matrices"].sum(axis=0)
        cell["matrices"] = np.load(other)["matrices"]
        cell["matrices"][0] += gain
        np.savez(path, **cell)
    text = text_of(tmp_path / "many")
    assert "+19.80 points" in text
    assert "which could be noise" in text


def test_counts_of_many_cells_add_up_beyond_32_bits(tmp_path):
    run = write_run(tmp_path, {"random": {80: [[90, 80], [90, 80]]}}, "unet", total=2 * 10**9)
    text = text_of(run)
    assert "| random | 0 | 85.0 | 85.0 | 85.0 | 73.9 |" in text
    assert "Only one method is finished." in text


def test_drawn_labels_are_said_to_be_drawn(tmp_path):
    splits = {"unlabeled": 9, "labeled": 300, "test": 9}
    changes = {"experiment.split": "labeled[:200]"}
    run = write_run(tmp_path, CLEAR, draws=1, splits=splits, changes=changes)
    assert "all labelled chips there are" not in text_of(run)
    config = json.loads((run / "config.json").read_text())
    prints = {"fingerprint": {"train": "200 chips, SHA-256 0123456789abcdef"}}
    (run / "config.json").write_text(json.dumps(config | prints))
    text = text_of(run)
    assert "Labelled chips are drawn from all of `labeled[:200]`, so that" in text
    assert "on 1 random choice of the labelled chips for each" in text
    assert "pre-training may have seen images (never labels)" in text
    assert "always the first" not in text
    assert "all labelled chips there are" in text.split("## 200 labels")[1]
    assert "all labelled chips there are" not in text.split("## 200 labels")[0]


def test_what_was_done_is_told_of_the_methods_that_there_are(tmp_path):
    text = text_of(write_run(tmp_path / "a", {"random": {80: [[70], [71]]}}))
    assert "Pre-training takes" not in text
    assert "Repeated: 2 initial encoders of each method, and" in text
    assert "Encoder: resnet18, width 1." in text
    assert "judged by 200 labelled chips of test." in text
    scores = {80: [[70], [71]]}
    two = {"late_fusion": scores, "mma_frozen": scores, "ensemble": scores}
    changes = {"augment.crop_size": 48, "experiment.split": "train", "finetune.frozen_epochs": 0}
    changes |= {"experiment.pretrain.name": "sen12ms", "experiment.label_draws": 1}
    text = text_of(write_run(tmp_path / "b", two, changes=changes))
    assert "Pre-training takes 200 epochs (batch 256, unlabeled+labeled[80:] of sen12ms)." in text
    assert "labelled chips of train (0 epochs with a frozen encoder, 80 of everything; of" in text
    assert "of methods that stay frozen, 80 with a frozen encoder)" in text
    assert "judged by 200 labelled squares of 48 x 48 pixels of test." in text
    assert "2 pre-trainings of each method (of those that have none, initial encoders)" in text
    assert "Encoders: plain, swin_t, resnet18, vgg, width 1." in text
    assert "pre-training may have seen" not in text  # it has other data


def test_a_folder_without_results_of_this_version_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no finished fine-tuning"):
        compose.write(tmp_path)
    write_run(tmp_path / "a", {"random": {80: [[70]]}})
    old = {"method": "random", "labels": 80, "seed": 0} | metrics.summary(np.eye(2, dtype=int))
    (tmp_path / "a" / "cells" / "random-80-0.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"of an earlier version; run .* in another --workdir"):
        compose.write(tmp_path / "a")


def test_damaged_counts_of_blocks_are_named(tmp_path):
    run = write_run(tmp_path, {"random": {80: [[70]]}}, blocks=5)
    (run / "cells" / "random-80-0-0-0.npz").write_bytes(b"PK half of it")
    with pytest.raises(InputError, match=r"random-80-0-0-0.npz can't be read .*; delete it and"):
        compose.write(run)


@pytest.mark.parametrize("changed", [{"method": -1}, {"data": "x"}, {"seed": 1.5}])
def test_a_damaged_result_is_named(changed, tmp_path):
    run = write_run(tmp_path, {"random": {80: [[70]]}})
    path = run / "cells" / "random-80-0-0-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=r"random-80-0-0-0.json can't be read .*; delete it, and"):
        compose.write(run)


def test_results_on_different_data_are_never_pooled(tmp_path):
    run = write_run(tmp_path, {"random": {80: [[70, 72]]}})
    for name, chips in (("random-80-0-0-0", "80 chips"), ("random-80-0-0-1", "90 chips")):
        path = run / "cells" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {"train": chips}}))
    with pytest.raises(InputError, match="results on different data"):
        compose.write(run)
    for path in (run / "cells").glob("*-0-1.json"):
        data = {"train": "80 chips", "pretrain": "500 chips"}  # others don't know, or have none
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": data}))
    compose.write(run)


def test_the_weights_that_pre_training_started_from_are_named(tmp_path):
    run = write_run(tmp_path, CLEAR, changes={"experiment.pretrain.init_from": "/home/me/imagenet"})
    for path in (run / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        start = "imagenet, from resnet18.pth (checksum 17)"
        path.write_text(json.dumps(cell | {"data": {"train": "80 chips", "start": start}}))
    compose.write(run)
    text = (run / "report.md").read_text()
    assert "starts from the encoder of imagenet, from resnet18.pth (checksum 17)." in text
    assert "/home/me" not in text
