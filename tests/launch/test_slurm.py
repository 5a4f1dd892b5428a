"""launch/slurm.sbatch on a real SLURM: two nodes, two ranks on each. Takes a few minutes on two cores.

Where SLURM's programs are not installed, or no cluster answers and none can be started, the tests are skipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.launch.slurm import Job, NoClusterError, cluster, command

pytestmark = [pytest.mark.processes, pytest.mark.slurm, pytest.mark.long]

TRAIN = ["--config", "configs/digits.yaml", "--optim.epochs", "30", "--checkpoint.every", "20"]


class Ended(NamedTuple):
    job: Job
    state: dict[str, str]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """All jobs, after their ends. Those that are to be requeued come first: the others run while they are held back."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        with cluster():
            submitted: dict[str, Job] = {}
            for name, interruption in {
                "requeued": ["scontrol", "requeue"],
                "warned": ["scancel", "--signal=USR1"],  # what SLURM does ahead of the time limit
                "cancelled": ["scancel"],
            }.items():
                submitted[name] = job = Job.submit(folder / name, *TRAIN)
                job.in_the_middle()
                command(*interruption, job.number)
            submitted["plain"] = Job.submit(folder / "plain", *TRAIN)
            submitted["failing"] = Job.submit(folder / "failing", *TRAIN, "--model.num_refiners", "3")
            yield {name: Ended(job, job.ended()) for name, job in submitted.items()}
    except NoClusterError as error:
        pytest.skip(str(error))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def test_digits_are_learned_on_two_nodes(jobs: dict[str, Ended]) -> None:
    job, state = jobs["plain"]
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), job.log
    summary = json.loads((job.folder / "summary.json").read_text())
    assert summary["world_size"] == 4
    assert summary["test_accuracy"] >= 0.97


def test_a_failing_job_ends_failed(jobs: dict[str, Ended]) -> None:
    job, state = jobs["failing"]
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "1:0", "0"), job.log
    assert "3 refiners cannot be placed on 4 ranks" in job.log


@pytest.mark.parametrize("name", ["requeued", "warned"])
def test_an_interrupted_job_comes_back_and_ends_with_the_same_weights(name: str, jobs: dict[str, Ended]) -> None:
    job, state = jobs[name]
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log
    assert ("stopped on request; back into the queue" in job.log) == (name == "warned"), "requeued by SLURM itself"
    expected = weights(jobs["plain"].job.folder)
    found = weights(job.folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_a_cancelled_job_does_not_come_back(jobs: dict[str, Ended]) -> None:
    job, state = jobs["cancelled"]
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), job.log
    assert "back into the queue" not in job.log
