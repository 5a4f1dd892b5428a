"""launch/: what the scripts start, without a cluster. test_slurm.py runs them on one."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness import ROOT

SAY = '#!/bin/sh\necho "threads=$OMP_NUM_THREADS run=$RUN_DIR" "$@"\n[ "$*" = "${*#*--fail}" ]\n'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with a python and an sbatch that only say what they were asked, and fail if there is a --fail."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("python", "sbatch"):
        (folder / name).write_text(SAY)
        (folder / name).chmod(0o755)
    return folder


def run(tools: Path, script: str, *arguments: str, **knobs: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python"), **knobs}
    command = [str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_local_has_knobs(tools: Path) -> None:
    done = run(
        tools, "local.sh", "--optim.epochs", "1", RANKS="3", MAX_RESTARTS="2", OMP_NUM_THREADS="5", RUN_DIR="a b"
    )
    assert done.stdout == (
        "threads=5 run=a b -m torch.distributed.run --standalone --nproc-per-node=3 --max-restarts=2 -m sidpar.train "
        f"--config {ROOT}/configs/digits.yaml --run.dir a b --optim.epochs 1\n"
    )


def test_local_has_defaults(tools: Path) -> None:
    done = run(tools, "local.sh", "--config", "mine.yaml")
    assert "--max-restarts=0 -m sidpar.train --config mine.yaml\n" in done.stdout
    assert "threads=0" not in done.stdout


def test_local_ends_with_the_status_of_the_training(tools: Path) -> None:
    assert run(tools, "local.sh", "--fail").returncode == 1


SWEEP = ["configs/digits.yaml", "configs/cifar10.yaml", "--", "--run.name", "a b"]


def test_a_sweep_is_one_job_per_file_and_seed(tools: Path) -> None:
    done = run(tools, "sweep.sh", "--dry-run", *SWEEP, SEEDS="0 7", SBATCH="--nodes=2 --time=60")
    assert done.stdout.splitlines() == [
        f"env RUN_DIR=runs/sweep/{name}-seed{seed} sbatch --nodes=2 --time=60 --job-name={name}-seed{seed} "
        f"--output=runs/sweep/{name}-seed{seed}/slurm-%j.out {ROOT}/launch/slurm.sbatch "
        f"--config configs/{name}.yaml --run.seed {seed} --run.name a\\ b "
        for name in ("digits", "cifar10")
        for seed in (0, 7)
    ]


def test_a_sweep_submits_what_it_says(tools: Path, tmp_path: Path) -> None:
    done = run(tools, "sweep.sh", "configs/digits.yaml", SWEEP_DIR=str(tmp_path))
    said, asked = done.stdout.splitlines()
    assert said.split(" sbatch ")[1].split() == asked.split()[2:]
    assert asked.startswith(f"threads= run={tmp_path}/digits ")
    assert (tmp_path / "digits").is_dir(), "for the log"


def test_a_local_sweep_goes_on_after_a_failure_and_says_so(tools: Path, tmp_path: Path) -> None:
    knobs = {"LOCAL": "yes", "SWEEP_DIR": str(tmp_path), "RANKS": "2"}
    done = run(tools, "sweep.sh", *SWEEP, **knobs)
    assert done.returncode == 0
    assert done.stdout.count(f"--run.dir {tmp_path}/") == 2
    done = run(tools, "sweep.sh", *SWEEP, "--fail", **knobs)
    assert done.returncode == 1
    assert "error: 2 of 2 failed: digits cifar10" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one YAML file"),
        (["none.yaml"], "none.yaml is no file"),
        (["--optim.epochs", "1"], "--optim.epochs: flags of the trainer come after --"),
        (["configs/digits.yaml", "configs/../configs/digits.yaml"], "two trainings would be named digits: rename"),
    ],
)
def test_a_sweep_refuses(arguments: list[str], message: str, tools: Path) -> None:
    done = run(tools, "sweep.sh", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


JOB = {"SLURM_JOB_NAME": "sidpar", "SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "8"}


def test_the_slurm_script_refuses(tools: Path) -> None:
    for arguments, knobs, message in [
        (["--run.dir", "x"], {}, "give the run folder as RUN_DIR, not as --run.dir"),
        (["--run.dir=x"], {}, "give the run folder as RUN_DIR, not as --run.dir"),
        ([], {"PYTHON": "no/python"}, "no no/python in .*: submit from the checkout, or set PYTHON"),
    ]:
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(tools / "python"), **JOB, **knobs}
        command = ["bash", str(ROOT / "launch" / "slurm.sbatch"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert re.search(message, done.stderr), done.stderr
