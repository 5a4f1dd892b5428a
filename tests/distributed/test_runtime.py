"""What ranks agree on before the first message, and how a job ends when one of them fails."""

import contextlib
import io
import re
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sidpar import Runtime
from sidpar.distributed.backends import choose_backend
from sidpar.distributed.failures import failure_elsewhere
from tests.harness import ROOT, RankError, run_ranks, torchrun


def agree(runtime: Runtime, values: list[dict[str, Any]]) -> None:
    runtime.agree("settings", values[runtime.rank])


@pytest.mark.processes
def test_agreement() -> None:
    run_ranks(agree, 2, [{"lr": 1e-3, "shape": [1, 2]}] * 2)


@pytest.mark.processes
def test_disagreement_is_told_on_every_rank() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(agree, 3, [{"lr": 0.1, "a": 1}, {"lr": 0.1, "a": 1}, {"lr": 0.2}])
    expected = "disagree on the settings; start them all alike. a: rank 0 has 1, rank 1 has 1, rank 2 has None"
    for rank in range(3):
        assert expected in error.value.errors[rank]
        assert "lr: rank 0 has 0.1, rank 1 has 0.1, rank 2 has 0.2" in error.value.errors[rank]


def silent(runtime: Runtime) -> None:
    if runtime.rank != 1:
        runtime.exchange("weather", None)
    else:
        time.sleep(60)


@pytest.mark.processes
def test_a_rank_that_never_answers_is_named() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(silent, 2, step_timeout=2, timeout=20)
    assert "rank 0 waited up to 2 s for rank 1's weather and gave up" in error.value.errors[0]


def collectives(runtime: Runtime) -> tuple[list[Any], str, list[float]]:
    table = torch.zeros(runtime.world_size, dtype=torch.float64)
    table[runtime.rank] = 1.5 + runtime.rank
    exchanged = runtime.exchange("rank", runtime.rank)
    return exchanged, runtime.from_root("name", f"r{runtime.rank}"), runtime.sum("table", table).tolist()


@pytest.mark.processes
def test_exchange_from_root_and_sum() -> None:
    for found in run_ranks(collectives, 3):
        assert found == ([0, 1, 2], "r0", [1.5, 2.5, 3.5])


def test_one_process_needs_no_group() -> None:
    runtime = Runtime.start(device="cpu")
    assert (runtime.rank, runtime.world_size, runtime.backend, runtime.groups) == (0, 1, "none", None)
    assert runtime.exchange("x", [1]) == [[1]]
    runtime.agree("anything", {"a": 1})


def test_messages() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="device=cuda, but torch sees no CUDA device here: use device=cpu"):
        Runtime.single("cuda")
    with pytest.raises(ValueError, match="these ranks compute on the CPU: use gloo"):
        Runtime.start(backend="nccl", device="cpu", rendezvous=(None, 0, 2))  # type: ignore[arg-type]


def test_backend_auto_needs_a_gpu_of_its_own_for_every_rank() -> None:
    """By identity, not by index: under SLURM each task may see its own GPU as number 0."""
    assert choose_backend("auto", ["node1 a", "node1 b", "node2 a"]) == "nccl"
    assert choose_backend("auto", ["node1 a", "node1 a"]) == "gloo"
    assert choose_backend("auto", [None, None]) == "gloo"
    assert choose_backend("gloo", ["node1 a", "node1 b"]) == "gloo"
    with pytest.raises(ValueError, match="the 3 ranks share 2 GPUs .such as node1 a.: start fewer ranks per node, or"):
        choose_backend("nccl", ["node1 a", "node1 b", "node1 a"])


STEP_TIMEOUT = 4.0
ENDED = r"(failed|was ended) in step 2, in the action:"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("failure", "extractor", "named"),
    [
        ("raise", "sharded", ["rank 1 failed in step 2, in the action: forward of refiner 1 of microbatch 0"]),
        ("raise", "root", ["rank 1 failed in step 2, in the action: forward of refiner 1 of microbatch 0"]),
        ("kill", "sharded", [f"rank 2 {ENDED} await the state of microbatch 0 from rank 1"]),
        ("kill", "replicated", [f"rank 2 {ENDED} await the state of microbatch 0 from rank 1"]),
        (
            "silence",
            "sharded",
            [
                "rank 2 failed in step 2, in the action: await the state of microbatch 0 from rank 1",
                "rank 1 was ended in step 2, in the action: forward of refiner 1 of microbatch 0",
            ],
        ),
        ("silence", "root", ["rank 1 was ended in step 2, in the action: forward of refiner 1 of microbatch 0"]),
    ],
)
def test_a_failing_rank_ends_the_job(failure: str, extractor: str, named: list[str]) -> None:
    """Rank 1 of 3 raises, is killed, or falls silent in its third step: the job ends non-zero, soon, and says which
    rank was doing what. A killed rank cannot speak for itself: the one that waits for it names it."""
    job = str(ROOT / "tests" / "distributed" / "failing_job.py")
    done = torchrun(3, job, failure, extractor, str(STEP_TIMEOUT), "cpu", timeout=90)
    ended = time.time()
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    for text in named:
        assert re.search(text, output), output
    if failure == "raise":  # torchrun shows the first to fail, and that is not one of its victims
        assert re.search(r"Root Cause.*RuntimeError: this refiner is broken", output, re.DOTALL), output
        assert "Connection" not in output, "which would say what came of it, after the reason"
    if failure == "kill":
        assert re.search(r"exitcode\s*: -9", output), output
    began = re.search(r"failing at ([\d.]+)", output)
    assert began is not None, output
    assert ended - float(began.group(1)) < STEP_TIMEOUT + 5


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("rank 0 has failed (RuntimeError: Read error [127.0.0.1]:48054: Connection reset by peer)", False),
        ("rank 0 has failed (ValueError: this refiner is broken)", True),
    ],
)
def test_a_victim_of_a_killed_rank_is_not_taken_for_the_reason(left: str, told: bool) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("failed", left)
    lost = RuntimeError("Read error [127.0.0.1]:48055: Connection reset by peer")
    assert failure_elsewhere(store, lost) == (left if told else None)


def broken_sum(runtime: Runtime) -> None:
    if runtime.rank == 1:
        time.sleep(60)
    runtime.sum("metrics", torch.zeros(2))


@pytest.mark.processes
def test_messages_outside_of_steps_are_named_too() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(broken_sum, 2, step_timeout=2, timeout=10)
    assert "rank 0 failed in the action: sum metrics over all ranks" in error.value.errors[0]


@pytest.mark.processes
def test_the_harness_shows_every_rank() -> None:
    with pytest.raises(RankError, match="--- rank 0 ---(.|\n)*--- rank 1 ---(.|\n)*ZeroDivisionError: 7"):
        run_ranks(divide, 2)


def fail_alone(runtime: Runtime) -> str:
    """What the others say when rank 1 fails."""
    errors = io.StringIO()
    if runtime.rank == 1:
        with pytest.raises(ValueError, match="a bad"), runtime:
            raise ValueError("a bad\nnumber")
    else:
        with contextlib.redirect_stderr(errors), pytest.raises(SystemExit), runtime:
            runtime.barrier()
    return errors.getvalue()


@pytest.mark.processes
def test_the_others_give_the_reason_instead_of_a_lost_connection() -> None:
    said = run_ranks(fail_alone, 3)
    for rank in (0, 2):
        assert said[rank] == f"rank {rank} ended in the action: barrier: rank 1 has failed (ValueError: a bad number)\n"


def divide(runtime: Runtime) -> None:
    if runtime.rank == 1:
        raise ZeroDivisionError(7)
    runtime.sum("nothing", torch.zeros(1))


@pytest.mark.processes
def test_importing_sidpar_has_no_side_effect() -> None:
    """No process group, no output, no random number drawn."""
    program = (
        "import torch; before = torch.get_rng_state(); import sidpar.train; "
        "assert torch.equal(torch.get_rng_state(), before); assert not torch.distributed.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
