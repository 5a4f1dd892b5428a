"""Modules that draw random numbers from the host's generators, and cascades that train in evaluation mode."""

import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from sidpar import (
    BPEngine,
    Cascade,
    LocalEngine,
    Objective,
    ParallelEngine,
    Runtime,
    Stage,
    StreamingEngine,
)
from sidpar.schedules.placement import Copies
from sidpar.seeding import seeded
from tests.engines.modules.quirks import CLASSES, INPUTS, RATE, WIDTH, batches, build, plain_loop
from tests.harness import run_ranks

pytestmark = pytest.mark.processes


class Noisy(nn.Module):
    """Multiplies by random numbers of Python's and NumPy's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        made: Tensor = self.layer(torch.cat(tensors, 1))
        return made * (0.5 + random.random()) + float(numpy.random.rand())


def noisy() -> Cascade:
    with seeded(0):
        refiners = [Noisy(WIDTH + CLASSES, CLASSES).double() for _ in range(4)]
        return Cascade(Noisy(INPUTS, WIDTH).double(), refiners, CLASSES)


def weights(runtime: Runtime, schedule: str, placement: Any, microbatches: int) -> dict[str, Tensor]:
    """After three steps."""
    objective = Objective()
    if schedule == "whole":
        stage = Stage(noisy(), runtime, placement=Copies(4, 1))
        engine: Any = BPEngine(stage, objective, checkpointing=placement)
    else:
        stage = Stage(noisy(), runtime, extractor=placement)
        if schedule == "local":
            engine = LocalEngine(stage, objective)
        else:
            engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=microbatches)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(stage.parameters(), lr=RATE)
    random.seed(5)
    numpy.random.seed(5)
    for _ in engine.train(batches(3), lambda _: optimizer.step()):
        pass
    assert random.random() == random.Random(5).random(), "the user's own numbers are disturbed"
    assert numpy.random.rand() == numpy.random.RandomState(5).rand()
    return {name: parameter.detach() for name, parameter in stage.named_parameters()}


def all_weights(runtime: Runtime, setups: list[tuple[str, Any, int]]) -> list[dict[str, Tensor]]:
    return [weights(runtime, *setup) for setup in setups]


def differs(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return not all(torch.allclose(tensor, expected[name], rtol=0, atol=1e-12) for name, tensor in found.items())


@pytest.mark.parametrize("ranks", [1, 2])
def test_random_numbers_of_the_host(ranks: int) -> None:
    """They depend on seed, module, step and microbatch, as dropout's masks do."""
    setups = [(s, p, m) for m in (1, 2) for s in ("fused", "two_phase") for p in ("replicated", "root")]
    ((local,),) = run_ranks(all_weights, 1, [("local", "replicated", 1)])
    for found in run_ranks(all_weights, ranks, setups if ranks > 1 else setups[::2]):
        half = len(found) // 2
        assert not any(differs(one, local) for one in found[:half])
        assert not any(differs(one, found[half]) for one in found[half:])
        assert differs(found[half], local), "each microbatch draws its own"


def test_what_is_computed_again_draws_the_same() -> None:
    ((kept, again),) = run_ranks(all_weights, 1, [("whole", False, 1), ("whole", True, 1)])
    assert not differs(again, kept)


KEEPS = ("counter", "written buffer", "queue")


def in_evaluation_mode(runtime: Runtime, schedule: str, evaluated_first: bool) -> None:
    """A cascade is trained as it is: the quirks of `Quirks` keep nothing in evaluation mode, batch norm neither."""
    cascade = build((*KEEPS, "batch norm"), (*KEEPS, "batch norm"))
    stage, data = Stage(cascade, runtime, extractor="replicated"), batches(3)
    stage.eval()
    staleness = int(schedule == "streaming")
    if staleness:
        engine: Any = StreamingEngine(stage, Objective(alpha=0.5), staleness=1, microbatches=2)
    else:
        engine = ParallelEngine(stage, Objective(alpha=0.5), schedule=schedule, microbatches=2)  # type: ignore[arg-type]
    if evaluated_first:
        engine.evaluate(*data[0])
    optimizer = torch.optim.SGD(stage.parameters(), lr=RATE)
    for _ in engine.train(data, lambda _: optimizer.step()):
        pass
    expected = plain_loop(build((*KEEPS, "batch norm"), (*KEEPS, "batch norm")), data, staleness, training=False)
    for name, tensor in [*stage.named_parameters(), *stage.named_buffers()]:
        torch.testing.assert_close(tensor.detach(), expected[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ["fused", "two_phase", "streaming"])
def test_training_in_evaluation_mode(schedule: str) -> None:
    run_ranks(in_evaluation_mode, 2, schedule, schedule == "fused")


def counted(runtime: Runtime, schedule: str) -> list[int]:
    """What a module that counts in any mode has counted after a step in evaluation mode, and one in training mode."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(INPUTS, WIDTH).double()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.as_tensor(self.layer(x)) / self.calls

    with seeded(0):
        refiners = [Noisy(WIDTH + CLASSES, CLASSES).double() for _ in range(2)]
        stage = Stage(Cascade(Counting(), refiners, CLASSES), runtime, extractor="replicated")
    engine, found = ParallelEngine(stage, schedule=schedule, objective=Objective()), []  # type: ignore[arg-type]
    for training in (False, True):
        stage.train(training)
        engine.step(*batches(1)[0])
        found.append(int(stage.get_buffer("extractor.calls")))
    return found


@pytest.mark.parametrize("schedule", ["fused", "two_phase"])
def test_what_is_kept_moves_once_a_batch_in_either_mode(schedule: str) -> None:
    assert run_ranks(counted, 1, schedule) == [[1, 2]]
