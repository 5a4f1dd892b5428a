"""Jobs whose ranks share one GPU and talk over gloo: trained, and ended by a rank that fails.

That a run goes on is tested by `pytest tests/training/test_resume.py --device cuda`."""

import re
import time
from pathlib import Path

import pytest
import torch

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
