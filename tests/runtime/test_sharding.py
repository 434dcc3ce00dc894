import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from elev_ssl_jax import files
from elev_ssl_jax.runtime import checkpoint, sharding
from tests import topology

ROOT = Path(__file__).parents[2]


def start(arguments, *, devices=4):
    """Starts a process of its own."""
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("_count=8", f"_count={devices}"),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(workdir, chips, *, die_at=None):
    """Two processes of four devices; the second may die, and may have chips of its own."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        start(
            [
                "tests.topology",
                workdir,
                chips[i],
                coordinator,
                2,
                i,
                *([die_at] * i if die_at else []),
            ]
        )
        for i in range(2)
    ]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    path = tmp_path_factory.mktemp("chips") / "chips.npz"
    topology.write_chips(path)
    return path


def parameters(workdir, mesh):
    """Those of the last checkpoint, whatever they were saved on."""
    with checkpoint.open_checkpoints(workdir, 2) as checkpoints:
        step = checkpoints.latest_step()
        where = sharding.replicated(mesh)
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            checkpoints.item_metadata(step).tree,
        )
        return checkpoints.restore(step, args=ocp.args.StandardRestore(target))["params"]


def test_one_run_on_any_topology_and_after_a_process_was_killed(
    chips, tmp_path, batch_mesh, monkeypatch, capsys
):
    folders = {count: tmp_path / str(count) for count in (1, 8)}
    for count, folder in folders.items():
        monkeypatch.setattr(sharding, "make_mesh", lambda devices=None, n=count: batch_mesh(n))
        topology.run(folder, chips)

    folders["2x4"] = tmp_path / "2x4"
    die_at = 20
    first, second = start_two(folders["2x4"], (chips, chips), die_at=die_at)
    second.communicate()
    killed = time.monotonic()
    told, _ = first.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert first.returncode not in (0, None)
    assert "another task died" in told
    before = topology.losses(folders["2x4"])
    assert max(before) >= die_at - 2
    outputs = [p.communicate()[0] for p in start_two(folders["2x4"], (chips, chips))]
    assert "going on after step 18 of 30" in outputs[0]
    assert "2 process(es), 8 device(s)" in outputs[0]

    expected = topology.losses(folders[1])
    assert sorted(expected) == list(range(1, 31))
    final = parameters(folders[1], batch_mesh(1))
    for topology_name in (8, "2x4"):
        folder = folders[topology_name]
        got = topology.losses(folder)
        np.testing.assert_allclose(
            [got[step] for step in expected], list(expected.values()), rtol=1e-4
        )
        for path in folders[1].glob("views*.npz"):
            ours, theirs = np.load(path), np.load(folder / path.name)
            for name in ours:
                # What is drawn is the same to the bit. Pixels are computed from it, by other vector
                # instructions for other numbers of them.
                atol = 1e-6 if name == "views" else 0
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol)
        other = parameters(folder, batch_mesh(1))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), final, other
        )

    # Saved on eight devices, of one process or two, and gone on with on one.
    capsys.readouterr()
    for name in (8, "2x4"):
        monkeypatch.setattr(sharding, "make_mesh", lambda devices=None: batch_mesh(1))
        scores = json.loads((folders[name] / "results.json").read_text())
        topology.run(folders[name], chips)
        assert "going on after step 30 of 30" in capsys.readouterr().out
        again = json.loads((folders[name] / "results.json").read_text())
        assert again == pytest.approx(scores, rel=1e-3)


TERMINATED = """
import os, signal, sys, time
from elev_ssl_jax.errors import reported
from elev_ssl_jax.runtime import sharding
with sharding.leaving(), reported():
    sharding.start_processes(sys.argv[1], 2, int(sys.argv[2]))
    if sharding.is_first():
        time.sleep(120)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(120)
"""


def test_one_process_of_several_that_is_terminated_keeps_its_exit_code():
    coordinator = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", TERMINATED, coordinator]
    first, second = (
        subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE, text=True) for i in range(2)
    )
    _, told = second.communicate(timeout=90)
    assert (second.returncode, told.splitlines()[-1][:11]) == (143, "terminated;")
    first.communicate(timeout=90)
    assert first.returncode not in (0, None)  # it can't go on alone


def test_processes_with_other_data_are_refused(chips, tmp_path):
    other = tmp_path / "other.npz"
    topology.write_chips(other, seed=1)
    for process in start_two(tmp_path / "run", (chips, other)):
        told, _ = process.communicate()
        assert process.returncode == 2
        assert "the data" in told
        assert "process(es) 1 is not that of process 0" in told


def told_by_both(workdirs):
    """What two processes of the command say, each with a folder of its own, before they end."""
    coordinator = f"127.0.0.1:{free_port()}"
    command = ["elev_ssl_jax.main", "--config=configs/simclr_elev.py:demo"]
    command += [f"--coordinator={coordinator}", "--num_processes=2"]
    processes = [
        start([*command, f"--workdir={workdir}", f"--process_id={i}"])
        for i, workdir in enumerate(workdirs)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    return outputs


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path):
    for told in told_by_both([tmp_path / "0", tmp_path / "1"]):
        assert "of process(es) 1 is not that of process 0" in told
        assert "share" in told
    assert not list(tmp_path.iterdir())


def test_what_the_first_process_refuses_all_refuse(tmp_path):
    with files.sole_writer(tmp_path, ""):
        for told in told_by_both([tmp_path, tmp_path]):
            assert "in use by another run; wait for it" in told
            assert "Traceback" not in told


@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_do_not_meet_end_with_a_line(tmp_path, number):
    process = start(
        [
            "elev_ssl_jax.main",
            "--config=configs/simclr_elev.py:demo",
            f"--workdir={tmp_path / 'run'}",
            f"--coordinator=127.0.0.1:{free_port()}",
            "--num_processes=2",
            f"--process_id={number}",
            "--join_timeout=3",
        ]
    )
    told, _ = process.communicate()
    assert process.returncode == 2
    assert "did not meet within 3 s" in told
    assert not (tmp_path / "run").exists()
