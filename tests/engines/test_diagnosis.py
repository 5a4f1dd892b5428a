"""What a stream observes of itself (Proposition 5): the same on any ranks, and without a trace."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import Objective, Runtime, Stage, StreamingEngine
from tests import networks
from tests.harness import run_ranks

EXTRACTORS = ("replicated", "root", "sharded")


def diagnosed(runtime: Runtime, extractor: Any, rate: float) -> list[Any]:
    """Five batches, with an observation before the third and the fifth one."""
    stage = Stage(networks.with_float_state(4), runtime, extractor=extractor)  # which is smooth
    engine = StreamingEngine(stage, Objective(), microbatches=2, diagnose_every=2)
    update = stepping(torch.optim.SGD(stage.parameters(), lr=rate))
    return [result.diagnosis for result in engine.train([networks.batch(6)] * 5, update)]


def stepping(optimizer: torch.optim.Optimizer) -> Callable[[Collection[str]], None]:
    """Steps over whatever has a gradient."""
    return lambda parts: optimizer.step()


@pytest.mark.processes
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_diagnosis(extractor: str) -> None:
    """The same on any ranks; nothing is stale where nothing moves; half the rate, about half the error."""
    (alone,) = run_ranks(diagnosed, 1, extractor, 0.1)
    assert [found is None for found in alone] == [True, True, False, True, False]
    # The last are replicas with shares of 2, 2, 1 and 1 rows.
    for ranks, replicas in ((3, 1), (4, 2), (4, 4)):
        for found in run_ranks(diagnosed, ranks, extractor, 0.1, replicas=replicas):
            for one, other in zip(found, alone, strict=True):
                assert (one is None) == (other is None)
                for name in one or ():
                    assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-12), name
    fast = alone[2]
    assert fast["teacher_drift"][0] == 0, "refiner 0 receives the uniform belief"
    assert min(fast["teacher_drift"][1:]) > 0
    (slow,) = run_ranks(diagnosed, 1, extractor, 0.05)
    for name in ("extractor_gradient_error", "extractor_staleness"):
        assert slow[2][name] == pytest.approx(fast[name] / 2, rel=0.1)
    for one, other in zip(slow[2]["gradient_error"], fast["gradient_error"], strict=True):
        assert one == pytest.approx(other / 2, rel=0.1)
    (still,) = run_ranks(diagnosed, 1, extractor, 0.0)
    assert still[2]["extractor_gradient_error"] == still[2]["extractor_staleness"] == 0
    assert still[2]["gradient_error"] == still[2]["teacher_drift"] == [0] * 4


def trained_beside(runtime: Runtime) -> dict[str, Tensor]:
    """A run that is observed, and drained for it, ends with the weights of its own drains: statistics and gradients of
    the two passes leave no trace."""
    found = []
    for every in (2, 0):
        stage = Stage(networks.noisy(3), runtime, extractor="root")
        engine = StreamingEngine(stage, Objective(), diagnose_every=every, seed=3)
        update = stepping(torch.optim.SGD(stage.parameters(), lr=0.1))
        batches = [networks.batch(6)] * 4
        for some in (batches,) if every else (batches[:2], batches[2:]):
            for _ in engine.train(some, update):
                pass
        found.append(stage.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    return found[0]


@pytest.mark.processes
def test_a_diagnosis_leaves_no_trace_but_the_drain() -> None:
    run_ranks(trained_beside, 2)
