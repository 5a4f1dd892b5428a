"""launch/: what the scripts start, without a cluster; test_slurm.py runs them on one. And the command for Docker."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
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
    command = ["bash", str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.processes
def test_local_has_knobs(tools: Path) -> None:
    done = run(
        tools, "local.sh", "--optim.epochs", "1", RANKS="3", MAX_RESTARTS="2", OMP_NUM_THREADS="5", RUN_DIR="a b"
    )
    assert done.stdout == (
        "threads=5 run=a b -m torch.distributed.run --standalone --nproc-per-node=3 --max-restarts=2 -m sidpar.train "
        f"--config {ROOT}/configs/digits.yaml --run.dir a b --optim.epochs 1\n"
    )


@pytest.mark.processes
def test_local_has_defaults(tools: Path) -> None:
    done = run(tools, "local.sh", "--config", "mine.yaml")
    assert "--max-restarts=0 -m sidpar.train --config mine.yaml\n" in done.stdout
    assert "threads=0" not in done.stdout


@pytest.mark.processes
def test_local_ends_with_the_status_of_the_training(tools: Path) -> None:
    assert run(tools, "local.sh", "--fail").returncode == 1


SWEEP = ["configs/digits.yaml", "configs/cifar10.yaml", "--", "--run.name", "a b"]


@pytest.mark.processes
def test_a_sweep_is_one_job_per_file_and_seed(tools: Path) -> None:
    done = run(tools, "sweep.sh", "--dry-run", *SWEEP, SEEDS="0 7", SBATCH="--nodes=2 --time=60")
    assert done.stdout.splitlines() == [
        f"env RUN_DIR=runs/sweep/{name}-seed{seed} sbatch --nodes=2 --time=60 --job-name={name}-seed{seed} "
        f"--output=runs/sweep/{name}-seed{seed}/slurm-%j.out {ROOT}/launch/slurm.sbatch "
        f"--config configs/{name}.yaml --run.seed {seed} --run.name a\\ b "
        for name in ("digits", "cifar10")
        for seed in (0, 7)
    ]


@pytest.mark.processes
def test_a_sweep_submits_what_it_says(tools: Path, tmp_path: Path) -> None:
    done = run(tools, "sweep.sh", "configs/digits.yaml", SWEEP_DIR=str(tmp_path))
    said, asked = done.stdout.splitlines()
    assert said.split(" sbatch ")[1].split() == asked.split()[2:]
    assert asked.startswith(f"threads= run={tmp_path}/digits ")
    assert (tmp_path / "digits").is_dir(), "for the log"


@pytest.mark.processes
def test_a_local_sweep_goes_on_after_a_failure_and_says_so(tools: Path, tmp_path: Path) -> None:
    knobs = {"LOCAL": "yes", "SWEEP_DIR": str(tmp_path), "RANKS": "2"}
    done = run(tools, "sweep.sh", *SWEEP, **knobs)
    assert done.returncode == 0
    assert done.stdout.count(f"--run.dir {tmp_path}/") == 2
    done = run(tools, "sweep.sh", *SWEEP, "--fail", **knobs)
    assert done.returncode == 1
    assert "error: 2 of 2 failed: digits cifar10" in done.stderr


@pytest.fixture
def _signals_of_a_terminal() -> Iterator[None]:
    """Where tests run in the background, SIGINT or SIGHUP may be ignored, which a script inherits and cannot undo."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.processes
@pytest.mark.usefixtures("_signals_of_a_terminal")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_local_sweep_that_is_asked_to_stop(name: str, status: int, tools: Path, tmp_path: Path) -> None:
    """By Ctrl-C, which a whole process group gets, or by a signal to the script alone: the training is asked to stop,
    once and by SIGTERM, on which it leaves a checkpoint; it is waited for, and no other one begins."""
    training = "#!/bin/bash\ntrap 'echo asked; sleep 0.3; echo ended; exit 1' TERM\ntrap 'echo interrupted' INT HUP\n"
    (tools / "python").write_text(training + "echo begun\nfor _ in {1..400}; do sleep 0.1; done\n")
    sweep = subprocess.Popen(
        ["bash", str(ROOT / "launch" / "sweep.sh"), "configs/digits.yaml"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(tools / "python"), "LOCAL": "yes", "SEEDS": "0 1", "SWEEP_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert sweep.stdout is not None
    assert "digits-seed0" in sweep.stdout.readline()
    assert sweep.stdout.readline() == "begun\n"
    (os.kill if name == "SIGTERM" else os.killpg)(sweep.pid, signal.Signals[name])
    output, errors = sweep.communicate(timeout=30)
    assert (sweep.returncode, output) == (status, "asked\nended\n")
    assert "sweep.sh: asked to stop; the same command goes on with what is not complete\n" in errors


@pytest.mark.processes
def test_the_names_of_a_sweep_may_be_parts_of_each_other(tools: Path, tmp_path: Path) -> None:
    for name in ("c one.yaml", "one.yaml"):
        (tmp_path / name).touch()
    done = run(tools, "sweep.sh", "--dry-run", f"{tmp_path}/c one.yaml", f"{tmp_path}/one.yaml")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stderr


@pytest.mark.processes
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


@pytest.mark.processes
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


@pytest.fixture
def slurm(tools: Path) -> Path:
    """The same folder with SLURM's commands: srun fails, and leaves REQUEUE if it was told to by LEAVE."""
    (tools / "srun").write_text('#!/bin/sh\n[ -z "$LEAVE" ] || touch "$RUN_DIR/REQUEUE"\nexit 1\n')
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@"\n')
    for name in ("srun", "scontrol"):
        (tools / name).chmod(0o755)
    return tools


@pytest.mark.processes
def test_a_job_comes_back_only_if_this_start_of_it_was_asked_to_stop(slurm: Path, tmp_path: Path) -> None:
    """Not for ever, where one that has come back fails before its training begins."""
    knobs = {**JOB, "SLURM_JOB_NODELIST": "a", "RUN_DIR": str(tmp_path)}
    done = run(slurm, "slurm.sbatch", LEAVE="yes", **knobs)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "requeue 7")
    assert (tmp_path / "REQUEUE").exists()
    done = run(slurm, "slurm.sbatch", **knobs)
    assert (done.returncode, "requeue" in done.stdout) == (1, False)


@pytest.mark.processes
@pytest.mark.parametrize(("cpus", "warned"), [("8", False), ("1", True)])
def test_a_job_with_too_few_cpus_says_so(cpus: str, warned: bool, slurm: Path, tmp_path: Path) -> None:
    knobs = {**JOB, "SLURM_JOB_NODELIST": "a", "RUN_DIR": str(tmp_path), "SLURM_CPUS_ON_NODE": cpus}
    said = run(slurm, "slurm.sbatch", RANKS_PER_NODE="8", **knobs).stderr
    assert ("8 ranks share 1 CPUs of a node: ask for more by --cpus-per-task" in said) == warned


@pytest.mark.processes
@pytest.mark.parametrize(
    ("visible", "ranks"),
    [(None, 3), ("0,2", 2), ("GPU-5d1a-1, 1", 2), ("", 4), ("-1", 4), ("1,-1,0", 1), ("NoDevFiles", 4)],
)
def test_local_counts_the_gpus_that_cuda_sees(visible: str | None, ranks: int, tools: Path) -> None:
    (tools / "nvidia-smi").write_text('#!/bin/sh\nfor k in 0 1 2; do echo "GPU $k: some (UUID: GPU-$k)"; done\n')
    (tools / "nvidia-smi").chmod(0o755)
    done = run(tools, "local.sh", **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    assert f"--nproc-per-node={ranks} " in done.stdout


def test_the_page_and_the_dockerfile_run_the_same_command() -> None:
    words = ["docker build -t sidpar .\n", "mkdir -p runs\n", 'docker run --rm --gpus all --ipc=host --user "$(id -u)']
    found = []
    for name in ("docs/guides/gpus.md", "Dockerfile"):
        lines = [line.lstrip("# ") for line in (ROOT / name).read_text().splitlines(keepends=True)]
        start = lines.index(words[0])
        found.append(lines[start : start + 3])
    assert found[0] == found[1]
    assert all(line.startswith(word) for line, word in zip(found[0], words, strict=True))
