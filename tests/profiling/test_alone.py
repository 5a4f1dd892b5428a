"""The memory pass: what cannot run or does not fit is left out by all ranks together, and nobody waits for it."""

from dataclasses import dataclass

import pytest
import torch
from harness.alone import memory_pass, room_for_contenders
from harness.contenders import SINGLE, Local, Pipeline, Whole
from harness.workloads import Workload
from torch import Tensor

from sidpar import Cascade, Compute, Runtime, Stage, UsageError
from sidpar.calibration.all_ranks import calibrate
from sidpar.engines.base import Engine
from sidpar.models.wide_mlp import wide_mlp
from sidpar.simulation.costs import Costs, Links
from tests.harness import run_ranks

pytestmark = pytest.mark.processes

IMAGE, WIDTH, ROWS = (1, 4, 4), 8, 8
FLOAT = 4


@dataclass(frozen=True)
class Scarce(Local):
    """Has no room on rank 1."""

    def place(self, cascade: Cascade, runtime: Runtime, workload: Workload, costs: Costs) -> Stage:
        if runtime.rank == 1:
            raise torch.OutOfMemoryError
        return super().place(cascade, runtime, workload, costs)


@dataclass(frozen=True)
class Greedy(Whole):
    """Runs out of memory in its step."""

    def engine(self, stage: Stage) -> Engine:
        engine = super().engine(stage)

        def step(x: Tensor, y: Tensor) -> None:
            raise torch.OutOfMemoryError

        engine.step = step  # type: ignore[assignment, method-assign]
        return engine


def workload() -> Workload:
    x, y = torch.randn(ROWS, *IMAGE), torch.randint(0, 10, (ROWS,))
    return Workload("small", {"cascade": lambda: wide_mlp(IMAGE, 10, 2, width=WIDTH)}, x, y, Compute())


def passes(runtime: Runtime) -> dict[str, object]:
    """Of several contenders one after the other: what they need, or why they cannot."""
    work = workload()
    costs = calibrate(runtime, work.networks["cascade"], work.x, work.y, work.compute, {ROWS}, Links())
    found: dict[str, object] = {}
    for contender, room in (
        (Scarce("scarce", "fused", "sharded"), None),
        (Greedy("greedy", SINGLE, "whole"), None),
        (Pipeline("bp", "1f1b", "cut", 1), None),
        (Pipeline("bp", "naive", "root", 1), 1000.0),
        (Whole("bp", SINGLE, "whole"), None),
        (Local("sid", "streaming", "sharded"), None),
    ):
        try:
            need = memory_pass(contender, runtime, work, costs, room).need
            found[contender.key] = (need.held, need.peak)
        except UsageError as error:
            found[contender.key] = str(error)
    return found


def test_all_ranks_leave_out_what_one_of_them_cannot_hold() -> None:
    first, second = run_ranks(passes, 2)
    assert first == second
    scarce, greedy, few, naive, alone, streaming = first.values()
    assert scarce == "needs more memory: rank 1 had none left"
    assert greedy == "needs more memory: rank 0 had none left"
    assert "needs at least 2 microbatches" in few
    assert naive.startswith("needs more than 1000 B: ")
    assert naive.endswith(", by the model")
    layer = 16 * WIDTH + WIDTH
    refiner = ((10 + WIDTH) * WIDTH + WIDTH) + (WIDTH * WIDTH + WIDTH) + (WIDTH * 10 + 10)
    held, peak = alone
    assert held == 2 * (layer + 2 * refiner) * FLOAT, "weights and momentum"
    assert peak > held + held / 2, "gradients besides, and what autograd saves"
    held, _ = streaming
    assert held == 2 * (layer + refiner) * FLOAT + 4 * layer * FLOAT, "two versions of the extractor, and gradients"


def room(runtime: Runtime) -> list[float | None]:
    return [room_for_contenders(runtime, 3.0 + runtime.rank), room_for_contenders(runtime, None)]


def test_the_room_is_that_of_the_rank_that_has_least() -> None:
    assert run_ranks(room, 2) == [[3.0 * 2**30, None]] * 2
