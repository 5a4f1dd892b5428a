"""Jobs whose ranks share one GPU and talk over gloo: trained, and ended by a rank that fails.

That a run goes on is tested by `pytest tests/training/test_resume.py --device cuda`."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sidpar.distributed.progress import HANGS_AFTER
from tests.distributed.test_runtime import STEP_TIMEOUT
from tests.harness import ROOT, torchrun

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

TRAIN = ["-m", "sidpar.train", "--config", str(ROOT / "configs" / "digits.yaml"), "--parallel.device", "cuda"]


def test_digits_are_learned(tmp_path: Path) -> None:
    done = torchrun(2, *TRAIN, "--run.dir", str(tmp_path), "--checkpoint.every", "50")
    assert done.returncode == 0, done.stderr
    accuracies = [float(found) for found in re.findall(r"test accuracy ([\d.]+)", done.stdout + done.stderr)]
    assert accuracies, done.stdout + done.stderr
    assert accuracies[-1] > 97


@pytest.mark.parametrize("failure", ["raise", "kill"])
def test_a_failing_rank_ends_the_job(failure: str) -> None:
    job = str(ROOT / "tests" / "distributed" / "failing_job.py")
    done = torchrun(2, job, failure, "sharded", str(STEP_TIMEOUT), "cuda", timeout=90)
    ended, output = time.time(), done.stdout + done.stderr
    assert done.returncode != 0, output
    began = re.search(r"failing at ([\d.]+)", output)
    assert began is not None, output
    assert ended - float(began.group(1)) < STEP_TIMEOUT + 5


HANGING = """
import os, signal, time, torch
from sidpar import Runtime

with Runtime.start(device="cuda") as runtime:
    runtime.signals.finish_step_on_request()
    numbers = torch.ones(8, device="cuda")
    with runtime.during("the last that is done", 3):
        numbers += 1
    torch.cuda.synchronize()
    time.sleep(0.1)
    with runtime.during("what never ends", 4):
        torch.cuda._sleep(40 * 10**9)  # about 20 s
    print(f"asked at {time.time()}", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    torch.cuda.synchronize()
    print("alive", flush=True)
"""


def test_a_stop_does_not_wait_for_a_device_that_hangs() -> None:
    command = [sys.executable, "-c", HANGING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90)
    ended = time.time()
    assert "alive" not in done.stdout
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "rank 0 was ended in step 4, in the action: what never ends" in done.stderr
    assert "its device has completed step 3, in the action: the last that is done" in done.stderr
    assert ended - float(done.stdout.split("asked at ")[1]) < HANGS_AFTER + 4
