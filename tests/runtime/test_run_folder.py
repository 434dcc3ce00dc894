import json

import numpy as np
import pytest

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import run_folder


def with_results(folder):
    (folder / "checkpoints" / "4").mkdir(parents=True)


def test_a_fingerprint_tells_chips_by_number_names_and_content(chips):
    one = run_folder.fingerprint(chips)
    assert one == run_folder.fingerprint(dict(reversed(chips.items())))
    assert one.startswith("20 chips")
    changed = {**chips, "image": chips["image"].copy()}
    changed["image"][19, 31, 31, 2] += 1
    renamed = {"mask" if name == "label" else name: array for name, array in chips.items()}
    fewer = {name: array[:19] for name, array in chips.items()}
    several = [run_folder.fingerprint(other) for other in (chips, changed, renamed, fewer)]
    assert len(set(several)) == 4
    assert run_folder.fingerprint(chips, 500).startswith("500 chips, SHA-256 of 20 ")
    assert run_folder.fingerprint(chips, 20) == one
    assert run_folder.fingerprint({**chips, "id": np.array(["a"] * 20)}) == one  # texts are no data


def test_other_data_and_other_settings_are_refused_where_there_are_results(tiny, tmp_path):
    run_folder.claim(tmp_path, tiny, {"train": "20 chips"})
    assert json.loads((tmp_path / "config.json").read_text())["fingerprint"]["train"] == "20 chips"
    run_folder.claim(tmp_path, tiny, {"train": "30 chips"})  # there is nothing to lose yet
    with_results(tmp_path)
    run_folder.claim(tmp_path, tiny, {"train": "30 chips"})
    with pytest.raises(InputError, match=r"other data .train: 30 chips then, 20 chips now"):
        run_folder.claim(tmp_path, tiny, {"train": "20 chips"})
    tiny.seed = 3
    with pytest.raises(InputError, match="seed was 0 and is 3"):
        run_folder.check_same_run(tmp_path, tiny)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_pre_trainings_of_an_experiment_are_results(tiny, tmp_path):
    tiny.task = "experiment"
    run_folder.claim(tmp_path, tiny, {})
    with_results(tmp_path / "pretrain" / "simclr")
    tiny.epochs += 1
    with pytest.raises(InputError, match="epochs was 2 and is 3"):
        run_folder.check_same_run(tmp_path, tiny)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model": 3}', "\x00"])
def test_an_unreadable_configuration_is_one_line(tiny, tmp_path, text):
    with_results(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="another --workdir"):
        run_folder.check_same_run(tmp_path, tiny)


def test_what_results_are_of_is_not_forgotten_by_a_run_that_does_not_use_it(tiny, tmp_path):
    tiny.task = "experiment"
    run_folder.claim(tmp_path, tiny, {"test": "9 chips", "pretrain": "500 chips"})
    with_results(tmp_path / "pretrain" / "simclr-0")
    run_folder.claim(tmp_path, tiny, {"test": "9 chips"})  # of the random encoder alone
    with pytest.raises(InputError, match="pretrain: 500 chips then, 600 chips now"):
        run_folder.claim(tmp_path, tiny, {"test": "9 chips", "pretrain": "600 chips"})


def test_results_of_nobody_knows_what_are_refused(tiny, tmp_path):
    with_results(tmp_path)
    with pytest.raises(InputError, match=r"no config.json .*another --workdir"):
        run_folder.claim(tmp_path, tiny, {})
    assert not (tmp_path / "config.json").exists()


def test_a_half_written_checkpoint_is_no_result(tiny, tmp_path):
    run_folder.claim(tmp_path, tiny, {})
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    tiny.seed = 3
    run_folder.claim(tmp_path, tiny, {})
