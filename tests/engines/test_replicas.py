"""R replicas of a cascade on K ranks each: gradients over the global batch, equal weights, own masks, refusals."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import BPEngine, Objective, ParallelEngine, Runtime, Stage, StreamingEngine
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.optim import OptimConfig
from sidpar.messages.transport import Pending, Transport
from sidpar.runs.weights import gather_weights
from sidpar.training.optim import Optimizers
from tests import networks
from tests.engines.backpropagation.test_whole import plain_backpropagation, whole
from tests.engines.test_streaming import compare, late, streamed
from tests.harness import run_ranks
from tests.oracle import assert_close_gradients, check, gradients, oracle

pytestmark = pytest.mark.processes

EXTRACTORS = ("replicated", "root", "sharded")
SCHEDULES = ("fused", "two_phase")
SEVERAL = Objective([0.2, 0.4, 0.6, 0.8, 0.9])
FINAL = Objective(0.3, "reverse", 0.1, "final")
FROZEN = Objective(0.3, extractor_update="frozen")
CASES = ((SEVERAL, 1), (SEVERAL, 7), (FINAL, 2), (FINAL, 12), (FROZEN, 5))
"""With the size of a batch: one of 1 leaves nothing for the second replica, one of 2 nothing for the third."""


def grid(runtime: Runtime) -> int:
    """All cases of the plain network; their number."""
    cases = 0
    for objective, size in CASES:
        x, y = networks.batch(size)
        reference = oracle(lambda: networks.plain(5), objective, x, y)
        for extractor in EXTRACTORS:
            stage = Stage(networks.plain(5), runtime, extractor=extractor)  # type: ignore[arg-type]
            for schedule, microbatches in product(SCHEDULES, (1, 3)):
                engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=microbatches)  # type: ignore[arg-type]
                case = f"B={size} M={microbatches} {extractor} {schedule} {objective}"
                check(case, stage, engine, reference, x, y, evaluate=schedule == "fused" and microbatches == 1)
                cases += 1
    return cases


@pytest.mark.parametrize(("replicas", "ranks"), [(2, 2), (3, 1), (2, 1)])
def test_gradients_equal_the_oracle(replicas: int, ranks: int) -> None:
    """Those of the oracle, over the global batch: localises errors in shares, weights and sums over replicas."""
    world = replicas * ranks
    assert run_ranks(grid, world, replicas=replicas) == [5 * 3 * 2 * 2] * world


def structures(runtime: Runtime) -> None:
    """Tuples of features and hidden states, beliefs per token, gradients in several buckets, several steps."""
    builds: list[tuple[Callable[[int], Cascade], int | None]] = [
        (networks.with_hidden_state, None),
        (networks.tokens, networks.INPUTS),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.messages.gradients.BUCKET_BYTES", 256)
        for (build, tokens), extractor in product(builds, EXTRACTORS):
            x, y = networks.batch(7, tokens)
            reference = oracle(lambda b=build: b(4), Objective(0.4), x, y)  # type: ignore[misc]
            stage = Stage(build(4), runtime, extractor=extractor, counts=[3, 1])  # type: ignore[arg-type]
            engine = ParallelEngine(stage, Objective(0.4), microbatches=2)
            for _ in range(2):
                check(f"{build.__name__} {extractor}", stage, engine, reference, x, y)


def test_every_structure_of_features_and_state() -> None:
    run_ranks(structures, 4, replicas=2)


def stacked(runtime: Runtime) -> None:
    """A rank's refiners at once, whose parameters' own hooks tell of no gradient."""
    x, y = networks.batch(7)
    reference = oracle(lambda: networks.plain(5), SEVERAL, x, y)
    for extractor, schedule in product(EXTRACTORS, SCHEDULES):
        stage = Stage(networks.plain(5), runtime, extractor=extractor)  # type: ignore[arg-type]
        settings: Any = {"schedule": schedule, "microbatches": 2, "refiner_execution": "stacked"}
        engine = ParallelEngine(stage, SEVERAL, **settings)
        for _ in range(2):
            check(f"{extractor} {schedule}", stage, engine, reference, x, y)


def test_refiners_that_learn_at_once() -> None:
    run_ranks(stacked, 4, replicas=2)


def departures(runtime: Runtime, how: Any) -> list[str]:
    """What a rank with two refiners, each with a bucket of its own, is doing when these leave."""
    seen = []
    sum_gradients = Transport.sum_refiner_gradients

    def leave(transport: Transport, bucket: Tensor) -> Pending:
        seen.append(str(runtime._doing[0]))
        return sum_gradients(transport, bucket)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.messages.gradients.BUCKET_BYTES", 8 * (7 * 7 + 7 + 7 * 3 + 3))
        patch.setattr(Transport, "sum_refiner_gradients", leave)
        engine = ParallelEngine(Stage(networks.plain(2), runtime), Objective(), microbatches=2, refiner_execution=how)
        engine.step(*networks.batch(8))
        seen.clear()  # in the first step, it is not known yet whether each gradient comes at once
        engine.step(*networks.batch(8))
    return seen


def test_gradients_leave_as_soon_as_they_are_complete() -> None:
    one_by_one = [f"backward of refiner {i} of microbatch 1" for i in (0, 1)]
    assert run_ranks(departures, 2, "loop", replicas=2) == [one_by_one] * 2
    at_once = ["forward and backward of all refiners at once of microbatch 1"] * 2
    assert run_ranks(departures, 2, "stacked", replicas=2) == [at_once] * 2


def streams(runtime: Runtime) -> None:
    """Ragged batches begin streams of their own; the last has no row for the second replica."""
    build, objective, sizes = (lambda: networks.plain(5)), Objective(0.4), (6, 6, 6, 5, 5, 1)
    several: list[dict[str, Any]] = [
        {"microbatches": 1},
        {"microbatches": 3, "staleness": 2},
        {"microbatches": 3, "refiner_execution": "stacked"},
    ]
    for settings in several:
        expected = late(build, objective, sizes, settings.get("staleness", 1))
        for extractor in EXTRACTORS:
            stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
            streamed(stage, objective, sizes, **settings)
            compare(f"{extractor} {settings}", stage, expected)


@pytest.mark.parametrize(("replicas", "ranks"), [(2, 2), (3, 1)])
def test_streams_end_with_the_weights_of_the_definition(replicas: int, ranks: int) -> None:
    run_ranks(streams, replicas * ranks, replicas=replicas)


def trained(runtime: Runtime) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """This rank's weights after five steps of Adam with weight decay and clipping, in fp32, and what is gathered of all
    ranks': for each placement of the extractor, and both engines."""
    config = OptimConfig(epochs=1, lr=0.01, weight_decay=0.1, schedule="constant")
    found = []
    for extractor, streaming in product(EXTRACTORS, (False, True)):
        stage = Stage(networks.plain(4).float(), runtime, extractor=extractor)  # type: ignore[arg-type]
        kind = StreamingEngine if streaming else ParallelEngine
        engine = kind(stage, Objective(), microbatches=2)
        optimizers = Optimizers(stage.parts(), config, steps_per_epoch=5)

        def update(parts: Any, engine: ParallelEngine = engine, optimizers: Optimizers = optimizers) -> None:
            engine.clip(0.1, parts)
            optimizers.update(parts)

        batches = (networks.batch(size) for size in (8, 8, 7, 5, 1))
        assert len(list(engine.train(((x.float(), y) for x, y in batches), update))) == 5
        found.append((dict(stage.state_dict()), gather_weights(stage)))
    return found


def test_replicas_stay_equal_bit_for_bit() -> None:
    """And the first one is saved."""
    found = run_ranks(trained, 4, replicas=2)
    for rank in (0, 1):
        for (weights, _), (copies, _) in zip(found[rank], found[rank + 2], strict=True):
            assert weights.keys() == copies.keys()
            assert all(torch.equal(tensor, copies[name]) for name, tensor in weights.items())
    for (first, saved), (second, _) in zip(found[0], found[1], strict=True):
        assert saved.keys() == networks.plain(4).state_dict().keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in (first | second).items())
    assert not any(saved for rank in (1, 2, 3) for _, saved in found[rank])


def masked(runtime: Runtime) -> tuple[Tensor, dict[str, Tensor]]:
    """Two steps with dropout in the refiners, on a batch whose two halves are the same."""
    stage = Stage(networks.with_dropout(2), runtime)
    engine = ParallelEngine(stage, Objective(), microbatches=2, seed=3)
    x, y = networks.batch(4)
    for _ in range(2):
        result = engine.step(torch.cat([x, x]), torch.cat([y, y]))
    return result.measures(), gradients(stage)


def test_replicas_have_masks_of_their_own() -> None:
    """Which depend on the replica, and on nothing else: not on K, not on when a job runs."""
    (one, first), (other, second) = run_ranks(masked, 2, replicas=2)
    assert not torch.equal(one, other)
    placed = run_ranks(masked, 4, replicas=2)
    assert torch.allclose(torch.cat([measures for measures, _ in placed[:2]]), one)
    assert torch.allclose(torch.cat([measures for measures, _ in placed[2:]]), other)
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])


def statistics(runtime: Runtime) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Batch norm's running statistics after a step, after an evaluation, and what the evaluation showed."""
    stage = Stage(networks.noisy(2), runtime, extractor="root")
    engine = ParallelEngine(stage, Objective())
    engine.step(*networks.batch(8))
    before = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    measures = engine.evaluate(*networks.batch(7)).measures()
    return before, dict(stage.named_buffers()), measures


def test_the_first_replicas_statistics_are_evaluated() -> None:
    """Those that are saved: each replica has seen another half of the batch."""
    (mine, kept, one), (theirs, taken, other) = run_ranks(statistics, 2, replicas=2)
    assert not all(torch.equal(buffer, theirs[name]) for name, buffer in mine.items())
    assert all(torch.equal(buffer, kept[name]) and torch.equal(buffer, taken[name]) for name, buffer in mine.items())
    assert one.shape == other.shape


def places(runtime: Runtime) -> tuple[int, ...]:
    """As `Runtime` tells them, and as the groups do."""
    groups = runtime.groups
    assert groups is not None
    assert groups.cascade is not None
    assert groups.replicas is not None
    for group in (groups.cascade.features, groups.cascade.feature_gradients, *groups.cascade.chain):
        assert (group.rank(), group.size()) == (runtime.cascade_rank, runtime.cascade_size)
    for group in (groups.replicas.refiner_gradients, groups.replicas.root_gradients):
        assert (group.rank(), group.size()) == (runtime.replica, runtime.num_replicas)
    return runtime.rank, runtime.replica, runtime.cascade_rank, runtime.cascade_size


def test_neighbours_in_a_cascade_are_neighbours_in_the_world() -> None:
    assert run_ranks(places, 4, replicas=2) == [(0, 0, 0, 2), (1, 0, 1, 2), (2, 1, 0, 2), (3, 1, 1, 2)]


def traffic(runtime: Runtime) -> dict[str, float]:
    stage = Stage(networks.plain(2), runtime, extractor="root")
    engine = ParallelEngine(stage, Objective())
    engine.step(*networks.batch(4))
    for kind, part in {"refiner gradients": stage.refiners, "parameter gradients": stage.extractor}.items():
        if part is not None:
            size = sum(8 * p.numel() for p in part.parameters())
            assert engine.traffic.sent[kind].bytes == pytest.approx(2 * 1 / 2 * size)
    return {kind: count.bytes for kind, count in engine.traffic.sent.items()}


def test_traffic_over_replicas_is_counted() -> None:
    found = run_ranks(traffic, 4, replicas=2)
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert "parameter gradients" not in found[1], "only first ranks hold the extractor"


def data_parallel(runtime: Runtime) -> None:
    x, y = networks.batch(7)
    stage = whole(networks.plain(3), runtime)
    BPEngine(stage, Objective()).step(x, y)
    expected = plain_backpropagation(networks.plain(3), Objective(), x, y)
    assert_close_gradients("ddp", gradients(stage), expected)


def test_ddp_takes_the_whole_world() -> None:
    """Whatever the number of replicas: for it, every rank is one."""
    run_ranks(data_parallel, 4, replicas=2)
