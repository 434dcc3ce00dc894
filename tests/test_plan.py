import json
import os
from pathlib import Path

import pytest

from elev_ssl_jax.config import default
from elev_ssl_jax.data import source, synthetic
from tests import commands

ROOT = Path(__file__).parents[1]
TINY = ("--config.model.width=0.125", "--config.model.encoder=vgg")  # compiles soonest
SMALL = (
    *("--config.batch_size=16", "--config.data.resident_gib=0"),
    *("--topology=local", "--data=200x32x32x3"),
    *TINY,
)


def plan(*arguments, config="configs/simclr_elev.py"):
    eight = os.environ["XLA_FLAGS"]  # devices
    return commands.forked("elev_ssl_jax.plan", f"--config={config}", *arguments, XLA_FLAGS=eight)


def test_a_run_is_planned_for_the_devices_at_hand():
    done = plan(*SMALL, "--json", "--quick")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["quick"]
    assert found["fits"] is None  # what a CPU has isn't known
    assert found["memory_gib_per_device"] > 0.001
    assert found["estimated_step_ms"] is None  # of a CPU there is no estimate
    assert {"chips_per_second", "model_flops_per_chip", "collectives"} <= found.keys()
    assert found["dataset_copies"] == 0
    assert found["serial_loops"] == 0
    assert found["stages"][0]["steps"] == 200 * (200 // 16)
    assert found["devices"] == 8


def test_the_screen_says_what_each_line_is_an_estimate_of():
    done = plan(
        *(*TINY, "--topology=local", "--config.data.synthetic.chips=400"),
        *(
            "--config.data.synthetic.size=32",
            "--config.epochs=1",
            "--config.finetune.frozen_epochs=1",
        ),
        config="configs/finetune_classification.py",
    )
    assert done.returncode == 0, done.stderr
    assert "fine-tuning, frozen encoder" in done.stdout
    assert "GFLOP a chip" in done.stdout
    assert "allocated by the compiler" in done.stdout
    assert "no estimate for such devices" in done.stdout


def test_prepared_chips_are_those_of_the_plan(tmp_path):
    data = default().data
    data.synthetic.update({"chips": 40, "size": 32})
    synthetic.prepare(data, tmp_path)
    chips = len(source.open_split(data, "unlabeled"))
    done = plan(
        *(*TINY, "--config.batch_size=8", "--config.epochs=3"),
        *(f"--config.data.dir={data.dir}", f"--config.data.name={data.name}"),
        *("--topology=local", "--json", "--quick"),
    )
    assert done.returncode == 0, done.stderr
    (stage,) = json.loads(done.stdout)["stages"]
    assert stage["steps"] == 3 * (chips // 8)
    # As rows of a multiple of 128 numbers.
    assert stage["resident_gib"] * 2**30 == pytest.approx(chips * (2 * 3072 + 4 * 128))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data=39720", "--topology=local"), "COUNTxHEIGHTxWIDTHxBANDS"),
        (("--data=200x32x32x0", "--topology=local"), "COUNTxHEIGHTxWIDTHxBANDS"),
        (("--data=200x32x32x3", "--slices=0"), "not a positive integer"),
        (("--data=200x32x32x3", "--topology=local", "--slices=2"), "--slices=2; the devices at"),
        (("--data=200x32x32x3", "--topology=v5e:9x9"), "unknown; there are local"),
        (("--config.data.dir=/nowhere", "--topology=local"), "or say what they are like: --data="),
        (("--config.nothing=1",), "unknown configuration field"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, said):
    done = plan(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
