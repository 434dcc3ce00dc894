import json

import numpy as np
import pytest
from scipy import stats

from elev_ssl_jax import metrics, report
from elev_ssl_jax.config import fine_tuning
from elev_ssl_jax.errors import InputError


def write_run(folder, accuracies, head="linear"):
    """An experiment's folder with cells of given accuracies, by method, labels and seed."""
    config = fine_tuning(head)
    config.experiment.methods = tuple(accuracies)
    config.experiment.labels = tuple(next(iter(accuracies.values())))
    (folder / "cells").mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort())
    for method, by_labels in accuracies.items():
        for labels, values in by_labels.items():
            for seed, right in enumerate(values):
                matrix = np.array([[right, 100 - right], [100 - right, right]])
                cell = {"method": method, "labels": labels, "seed": seed}
                path = folder / "cells" / f"{method}-{labels}-{seed}.json"
                path.write_text(json.dumps(cell | metrics.summary(matrix)))
    return folder


def test_the_interval_is_students(rng):
    values = rng.normal(size=7)
    low, high = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    mean, half = report.interval(values)
    np.testing.assert_allclose([mean - half, mean + half], [low, high])
    assert np.isnan(report.interval(np.array([3.0]))[1])


def test_a_report_says_who_wins_and_whether_that_is_noise(tmp_path):
    run = write_run(
        tmp_path,
        {
            "random": {80: [70, 72, 71], 200: [75, 76, 77]},
            "simclr": {80: [70, 73, 71], 200: [85, 86, 87]},
            "simclr_elev": {80: [90, 91, 90], 200: [86, 86, 89]},
        },
    )
    printed = report.write(run)
    text = (run / "report.md").read_text()
    assert "SimCLR+Elevation has the highest accuracy: 19.00 points above SimCLR" in text
    assert "is more than noise; 19.33 points above random" in text
    assert "SimCLR+Elevation has the highest accuracy: 1.00 points above SimCLR (" in text
    assert "could be noise" in text
    assert "| SimCLR+Elevation - random | +19.33 (" in text
    assert "| random | 3 | 71.00 ± 2.48 | 87.73 |" in text  # the paper's number beside ours
    assert "contains zero" in text
    assert "71.00" in printed
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2  # curves, confusion
    assert "<table" in page
    assert len((run / "results.csv").read_text().splitlines()) == 19


def test_one_seed_has_no_interval(tmp_path):
    run = write_run(tmp_path, {"random": {50: [70]}, "glcnet": {50: [80]}}, head="unet")
    report.write(run)
    text = (run / "report.md").read_text()
    assert "one seed says nothing about noise" in text
    assert "±" not in text
    assert "paper" not in text.split("## 50 labels")[1].split("##")[0]  # its labels were 80


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="holds no finished fine-tuning"):
        report.write(tmp_path)
