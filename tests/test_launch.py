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
