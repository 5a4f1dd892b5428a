"""`torchrun --nnodes=2` on two hosts with addresses of their own: it trains, and a cut cable ends both sides."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.two_hosts import CannotMakeHostsError, Host, two_hosts

pytestmark = [pytest.mark.processes, pytest.mark.namespaces, pytest.mark.long]

STEP_TIMEOUT = 5.0
TRAIN = ["-m", "sidpar.train", "--config", "configs/digits.yaml", "--model.num_refiners", "4", "--run.log_every", "2"]


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as pair:
            yield pair
    except CannotMakeHostsError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


def start(hosts: tuple[Host, Host], ranks: int, folder: Path, *flags: str) -> list[subprocess.Popen[str]]:
    return [host.torchrun(ranks, *TRAIN, "--run.dir", str(folder), *flags) for host in hosts]


def test_two_hosts_train(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    jobs = start(hosts, 1, tmp_path / "run", "--optim.epochs", "2")
    outputs = [job.communicate(timeout=200)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert ["test accuracy" in output for output in outputs] == [True, False], "rank 0 speaks for all"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["world_size"], summary["steps"]) == (2, 12)


def test_a_cut_cable_ends_both_hosts(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """In the middle of training, without a word to anybody: the ranks of each host say what they were waiting for, and
    both launchers end."""
    flags = ["--optim.epochs", "5000", "--run.eval_every", "5000", "--parallel.step_timeout", str(STEP_TIMEOUT)]
    jobs = start(hosts, 2, tmp_path / "run", *flags)
    try:
        metrics, patience = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
        while not metrics.exists() or metrics.read_text().count("\n") < 5:
            assert time.monotonic() < patience
            assert [job.poll() for job in jobs] == [None, None], [job.communicate()[0] for job in jobs]
            time.sleep(0.1)
        hosts[1].cut()
        cut = time.monotonic()
        outputs = [job.communicate(timeout=90)[0] for job in jobs]
        seconds = time.monotonic() - cut
    finally:
        for job in jobs:
            job.kill()
    assert all(job.returncode != 0 for job in jobs)
    for output, ranks in zip(outputs, ("01", "23"), strict=True):
        assert re.search(rf"rank [{ranks}] failed in (step \d+, in )?the action: ", output), output
    assert "this host is cut off from it, and its torchrun, which would go on waiting, is ended" in outputs[1]
    assert "cut off" not in outputs[0], "the first host keeps the store"
    assert seconds < STEP_TIMEOUT + 20  # a busy machine takes its time to end processes
