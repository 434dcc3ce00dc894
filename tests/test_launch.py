import os
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = [
    *sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch")),
    LAUNCH.parent / "benchmarks" / "gpu.sh",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_say_how_they_are_used(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_job_of_an_array_predicts_its_part(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text(f"PATH={tmp_path / 'bin'}:$PATH\n")
    (tmp_path / "bin" / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)

    def start(number, first, last, count, **more):
        array = {"TASK_ID": number, "TASK_MIN": first, "TASK_MAX": last, "TASK_COUNT": count}
        slurm = {f"SLURM_ARRAY_{name}": str(value) for name, value in array.items()}
        return subprocess.run(
            ["bash", LAUNCH / "predict.sbatch", "--run", "a run", "--out", "map.tif"],
            capture_output=True,
            text=True,
            env=os.environ | slurm | {"VENV": str(tmp_path), **more},
        )

    words = "-m elev_ssl_jax.predict --workers {} --run a run --out map.tif --shard 3/8\n"
    done = start(3, 1, 8, 8, SLURM_CPUS_PER_TASK="4")
    assert (done.stdout, done.stderr) == (words.format(3), "")
    # Some parts again: of how many, the array doesn't say.
    done = start(3, 3, 5, 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: this array is not 1 to 5; say by PARTS=N")
    done = start(3, 3, 5, 2, PARTS="8", SLURM_CPUS_PER_TASK="1")
    assert (done.stdout, done.stderr) == (words.format(1), "")


def test_local_ends_with_the_error_of_its_processes(tmp_path):
    done = subprocess.run(
        [
            "bash",
            LAUNCH / "local.sh",
            "2",
            "--config=configs/simclr_elev.py",
            f"--workdir={tmp_path / 'run'}",
            "--config.data.dir=/nonexistent",
        ],
        capture_output=True,
        text=True,
        cwd=LAUNCH.parent,
        env=os.environ | {"PYTHON": sys.executable},
    )
    assert done.returncode == 2
    assert "data.dir=/nonexistent has no nwrc/classification" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_jobs_of_the_jobset_are_valid():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}}
        job["spec"] = replicated["template"]["spec"]
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        assert job["spec"]["parallelism"] == job["spec"]["completions"]
