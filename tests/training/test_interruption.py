"""Real jobs under torchrun that are killed, ended or warned, and end with the weights of one that was not."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sidpar.training.stopping import REQUEUE_STATUS
from tests.harness import ROOT
from tests.training.test_resume import difference

pytestmark = [pytest.mark.processes, pytest.mark.long]

FLAGS = ["--model.name", "wide_mlp", "--model.width", "64", "--model.num_refiners", "4", "--data.batch_size", "50"]
FLAGS += ["--optim.epochs", "7", "--run.log_every", "5", "--checkpoint.every", "20", "--run.eval_every", "7"]
"""203 steps, 29 in an epoch."""


def start(folder: Path, *launcher: str) -> "subprocess.Popen[str]":
    """The command on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "-m", "sidpar.train", *FLAGS, "--run.dir", str(folder)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(job: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and output."""
    output, _ = job.communicate(timeout=240)
    return job.returncode, output


def wait_for_step(folder: Path, step: int, job: "subprocess.Popen[str]") -> None:
    """Until the record has reached it; the job must still run then."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        record = folder / "metrics.jsonl"
        lines = record.read_text().splitlines()[:-1] if record.exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        assert job.poll() is None, finish(job)[1]
        time.sleep(0.05)
    raise TimeoutError(f"no step {step}")


def process_of(folder: Path, rank: int) -> int:
    """As the rank's own log tells."""
    found = re.findall(r"is process (\d+) on", (folder / "logs" / f"rank_{rank}.log").read_text())
    return int(found[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, output = finish(start(folder))
    assert status == 0, output
    return folder


def resumed_at(folder: Path) -> list[int]:
    steps: list[int] = json.loads((folder / "summary.json").read_text())["resumed_at"]
    return steps


def test_a_killed_rank_and_the_same_command_again(whole: Path, tmp_path: Path) -> None:
    job = start(tmp_path)
    wait_for_step(tmp_path, 45, job)
    os.kill(process_of(tmp_path, 1), signal.SIGKILL)
    status, output = finish(job)
    assert status != 0
    assert re.search(r"exitcode\s*: -9", output), output
    status, output = finish(start(tmp_path))
    assert status == 0, output
    (step,) = resumed_at(tmp_path)
    assert f"resumed from step {step}: " in output
    assert step >= 40
    assert step % 20 == 0
    assert difference(tmp_path, whole) == 0


def test_a_killed_rank_without_a_person(whole: Path, tmp_path: Path) -> None:
    """torchrun starts all ranks again."""
    job = start(tmp_path, "--max-restarts=3")
    wait_for_step(tmp_path, 45, job)
    os.kill(process_of(tmp_path, 1), signal.SIGKILL)
    status, output = finish(job)
    assert status == 0, output
    assert len(resumed_at(tmp_path)) == 1
    assert difference(tmp_path, whole) == 0


def test_sigterm_to_the_launcher(whole: Path, tmp_path: Path) -> None:
    """The launcher hands it on; all ranks stop after the same step, which is saved."""
    job = start(tmp_path)
    wait_for_step(tmp_path, 45, job)
    job.send_signal(signal.SIGTERM)
    status, output = finish(job)
    assert status != 0
    assert "stopped on request; the same command goes on" in output
    assert (tmp_path / "REQUEUE").exists()
    status, output = finish(start(tmp_path))
    assert status == 0, output
    assert not (tmp_path / "REQUEUE").exists()
    assert difference(tmp_path, whole) == 0


def test_a_warning_to_one_rank_with_restarts(whole: Path, tmp_path: Path) -> None:
    """SLURM's SIGUSR1 reaches rank 1 alone. Its launcher, which does not know why the ranks ended, starts them again;
    they end with the same status at once. The next command begins a new launch, and goes on."""
    job = start(tmp_path, "--max-restarts=1")
    wait_for_step(tmp_path, 45, job)
    os.kill(process_of(tmp_path, 1), signal.SIGUSR1)
    status, output = finish(job)
    assert status != 0
    assert re.search(rf"exitcode\s*: {REQUEUE_STATUS}", output), output
    stopped = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1]
    status, output = finish(start(tmp_path))
    assert status == 0, output
    assert resumed_at(tmp_path) == [int(stopped.removeprefix("step_"))], "nothing was done in between"
    assert difference(tmp_path, whole) == 0
