"""What NCCL needs so that a first use stops nobody, on gloo: receives that are posted late, and a rehearsal before
the first message of every new layout of a batch. Neither changes anything."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import product, takewhile
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import Cascade, Objective, ParallelEngine, Runtime, Stage, StreamingEngine
from sidpar.engines.base import Engine
from sidpar.messages.transport import Transport
from tests import networks
from tests.harness import run_ranks

pytestmark = pytest.mark.processes

LATE = {"posts_receives_ahead": False}
REHEARSED = {"loads_lazily": True}
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
    for schedule in ("two_phase", "streaming"):
        stage = Stage(networks.normalised(4), runtime, sync_batchnorm=True)
        settings = {"microbatches": 3, "seed": 5}
        if schedule == "streaming":
            yield "statistics streaming", StreamingEngine(stage, Objective(), **settings)
        else:
            yield "statistics two_phase", ParallelEngine(stage, Objective(), schedule="two_phase", **settings)
    stage = Stage(networks.plain(4), runtime)
    yield "stacked", ParallelEngine(stage, Objective(), refiner_execution="stacked", microbatches=2)


def trained(runtime: Runtime, changes: Mapping[str, bool]) -> dict[str, Seen]:
    """What is left behind, after every step and an evaluation, by engines on a machine of which these are so."""
    warnings.filterwarnings("error", "a rehearsal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.messages.gradients.BUCKET_BYTES", 256)
        for name, value in changes.items():
            patch.setattr(Runtime, name, value)
        return {case: seen for name, engine in engines(runtime) for case, seen in steps(name, engine)}


def steps(name: str, engine: Engine) -> Iterator[tuple[str, Seen]]:
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(engine.stage.parameters(), lr=0.1, momentum=0.9)
    for k, result in enumerate(engine.train(map(networks.batch, SIZES), lambda _: optimizer.step())):
        yield f"{name}, step {k}", left_behind(engine) | {"measures": result.measures().cpu()}
    yield (
        f"{name}, evaluated",
        {"measures": engine.evaluate(*networks.batch(13)).measures().cpu()} | left_behind(engine),
    )


def left_behind(engine: Engine) -> Seen:
    """Weights, statistics, gradients, random numbers to come, and what was sent."""
    stage, traffic = engine.stage, engine.traffic
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in stage.state_dict().items()}
    gradients = {
        f"{n}'s gradient": None if p.grad is None else p.grad.cpu().clone() for n, p in stage.named_parameters()
    }
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
    rehearsed = run_ranks(trained, ranks, REHEARSED, replicas=replicas)
    for rank in range(ranks):
        compare(late[rank], expected[rank], "peak")  # fewer buffers at once
        compare(rehearsed[rank], expected[rank])


Log = list[tuple[Any, ...]]
"""The messages that left a rank, and what else it did, in order."""


def logged(runtime: Runtime) -> dict[str, tuple[Log, Log]]:
    """What each engine did before the first message of a batch, and from then on."""
    log: Log = []
    begin, extract, refine = Transport._begin, Stage.extract, Stage.refine

    def begins(transport: Transport, call: Callable[..., Any], *buffers: Tensor, **where: Any) -> Any:
        work = begin(transport, call, *buffers, **where)
        log.extend([] if work is None else [("message", call.__name__, [buffer.shape for buffer in buffers])])
        return work

    def extracts(stage: Stage, x: Tensor, *, graph: bool) -> Any:
        log.append(("extract", stage.training, graph, x.shape))
        return extract(stage, x, graph=graph)

    def refines(stage: Stage, i: int, features: Any, state: Any, *, graph: bool) -> Any:
        log.append(("refine", i, stage.training, graph, features[0].shape))
        return refine(stage, i, features, state, graph=graph)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "loads_lazily", True)
        for name, value in {"_begin": begins, "extract": extracts, "refine": refines}.items():
            patch.setattr(Transport if name == "_begin" else Stage, name, value)
        for name, engine in engines(runtime):
            for training in (True, False):
                log.clear()
                batch = networks.batch(14)
                next(iter(engine.train([batch], lambda _: None))) if training else engine.evaluate(*batch)
                first = next(k for k, entry in enumerate(log) if entry[0] == "message")
                found[f"{name} {training=}"] = log[:first], log[first:]
    return found


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (3, 1), (4, 2)])
def test_all_is_used_before_the_first_message_and_all_messages_go_first_alone(ranks: int, replicas: int) -> None:
    """No pass, and no message behind the first pass, is of a kind or size that was not there before."""
    for found in run_ranks(logged, ranks, replicas=replicas):
        for case, (before, after) in found.items():
            assert before, case
            alone = list(takewhile(lambda entry: entry[0] == "message", after))
            assert alone, case
            for entry in after[len(alone) :]:
                assert entry in (alone if entry[0] == "message" else before), f"{case}: {entry}"


class Wary(torch.nn.Module):
    """Refuses a batch in which all features are alike."""

    def __init__(self, refiner: torch.nn.Module) -> None:
        super().__init__()
        self.refiner = refiner

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        if not features.is_meta and features.std() == 0:
            raise ValueError("nothing to tell apart")
        logits: Tensor = self.refiner(features, log_belief)
        return logits


def refused(runtime: Runtime) -> tuple[list[str], Seen]:
    """A step after a rehearsal that a module refuses, and the warnings."""
    cascade = networks.plain(2)
    cascade = Cascade(cascade.extractor, [Wary(refiner) for refiner in cascade.refiners], networks.CLASSES)
    engine = ParallelEngine(Stage(cascade, runtime, extractor="root"), Objective())
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        patch.setattr(Runtime, "loads_lazily", True)
        engine.step(*networks.batch(8))
    return [str(warning.message) for warning in caught], left_behind(engine)


def test_a_rehearsal_that_a_module_refuses_is_left_out() -> None:
    (quiet, _), (warned, seen) = run_ranks(refused, 2)
    assert not [text for text in quiet if "rehearsal" in text]
    assert [text for text in warned if "nothing to tell apart" in text]
    assert seen["refiners.1.refiner.layers.0.weight's gradient"].abs().sum() > 0
