"""What NCCL needs so that a first use stops nobody, on gloo: receives that are posted late."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import Objective, ParallelEngine, Runtime, Stage, StreamingEngine
from sidpar.engines.base import Engine
from tests import networks
from tests.harness import run_ranks

pytestmark = pytest.mark.processes

LATE = {"posts_receives_ahead": False}
SIZES = (14, 14, 12)
"""Of batches: one size twice, and another."""
Seen = dict[str, Any]


def engines(runtime: Runtime) -> Iterator[tuple[str, Engine]]:
    """Every schedule and placement, of networks with random masks and statistics where they may have them, hidden
    states and features of integers."""
    builds: Any = {"sharded": networks.with_hidden_state, "root": networks.noisy, "replicated": networks.noisy}
    for (extractor, build), schedule in product(builds.items(), ("fused", "two_phase", "streaming")):
        stage = Stage(build(4), runtime, extractor=extractor)
        settings: Any = {"microbatches": 3, "seed": 5}
        if schedule == "streaming":
            yield f"{extractor} streaming", StreamingEngine(stage, Objective(), weight_prediction=True, **settings)
        else:
            yield f"{extractor} {schedule}", ParallelEngine(stage, Objective(), schedule=schedule, **settings)
    stage = Stage(networks.plain(4), runtime)
    yield "stacked", ParallelEngine(stage, Objective(), refiner_execution="stacked", microbatches=2)


def trained(runtime: Runtime, changes: Mapping[str, bool]) -> dict[str, Seen]:
    """What is left behind, after every step and an evaluation, by engines on a machine of which these are so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.messages.gradients.BUCKET_BYTES", 256)
        for name, value in changes.items():
            patch.setattr(Runtime, name, value)
        return {case: seen for name, engine in engines(runtime) for case, seen in steps(name, engine)}


def steps(name: str, engine: Engine) -> Iterator[tuple[str, Seen]]:
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(engine.stage.parameters(), lr=0.1, momentum=0.9)
    for k, result in enumerate(engine.train(map(networks.batch, SIZES), lambda _: optimizer.step())):
        yield f"{name}, step {k}", left_behind(engine) | {"measures": result.measures()}
    yield f"{name}, evaluated", {"measures": engine.evaluate(*networks.batch(13)).measures()} | left_behind(engine)


def left_behind(engine: Engine) -> Seen:
    """Weights, statistics, gradients, random numbers to come, and what was sent."""
    stage, traffic = engine.stage, engine.traffic
    tensors = {name: tensor.detach().clone() for name, tensor in stage.state_dict().items()}
    gradients = {f"{n}'s gradient": None if p.grad is None else p.grad.clone() for n, p in stage.named_parameters()}
    sent = {kind: (count.messages, count.bytes) for kind, count in traffic.sent.items()}
    return tensors | gradients | {"generator": torch.get_rng_state(), "sent": sent, "peak": traffic.peak_buffers}


def compare(found: dict[str, Seen], expected: dict[str, Seen], *but: str) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for case, seen in expected.items():
        assert found[case].keys() == seen.keys()
        for name in seen.keys() - but:
            assert same(found[case][name], seen[name]), f"{case}: {name}"


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


@pytest.mark.parametrize(("ranks", "replicas"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_nothing_that_a_machine_needs_changes_what_is_learned(ranks: int, replicas: int) -> None:
    expected = run_ranks(trained, ranks, {}, replicas=replicas)
    late = run_ranks(trained, ranks, LATE, replicas=replicas)
    for rank in range(ranks):
        compare(late[rank], expected[rank], "peak")  # fewer buffers at once
