"""Batch norm over ranks, against one process that has all rows: gradients, running statistics and measures."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import BPEngine, Compute, Copies, Objective, ParallelEngine, Runtime, Stage, StreamingEngine, make_cut
from sidpar.cascade.cascade import Cascade
from sidpar.engines.base import Engine
from sidpar.models.assembly import assemble
from sidpar.models.concat_refiner import ConcatRefiner
from tests import networks
from tests.engines.test_streaming import late, streamed
from tests.harness import RankError, alone, run_ranks
from tests.oracle import TOLERANCE, assert_close_gradients, check, gradients, oracle

pytestmark = pytest.mark.processes

EXTRACTORS = ("replicated", "root", "sharded")
SCHEDULES = ("fused", "two_phase")
ALL, FINAL = Objective(0.4), Objective(0.4, extractor_update="final")


def synchronised(build: Callable[[int], Cascade], runtime: Runtime, extractor: Any, **settings: Any) -> Stage:
    return Stage(build(5), runtime, extractor=extractor, sync_batchnorm=True, **settings)


def assert_same_buffers(case: str, stage: Stage, expected: dict[str, Tensor]) -> None:
    for name, buffer in stage.named_buffers():
        assert (buffer.cpu().double() - expected[name].double()).abs().max() < TOLERANCE, f"{case}: {name}"


def sharded(runtime: Runtime) -> int:
    """Shards of all sizes, empty ones too; the extractor sees the whole batch, whatever M."""
    cases = 0
    for size, m, schedule in product((2, 5, 8), (1, 3), SCHEDULES):
        build = networks.normalised if m == 1 else networks.normalised_extractor  # whose refiners see a microbatch
        objective = FINAL if schedule == "two_phase" and size == 5 else ALL
        x, y = networks.batch(size)
        expected = oracle(lambda: build(5), objective, x, y)  # noqa: B023
        stage = synchronised(build, runtime, "sharded")
        engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=m, seed=5)  # type: ignore[arg-type]
        case = f"B={size} M={m} {schedule} {objective}"
        check(case, stage, engine, expected, x, y)
        assert_same_buffers(case, stage, expected.buffers)
        cases += 1
    return cases


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_sharded_extractor_sees_the_whole_batch(ranks: int) -> None:
    assert run_ranks(sharded, ranks) == [3 * 2 * 2] * ranks


def replicated(runtime: Runtime) -> int:
    """Shares of all sizes, replicas without rows too; with M = 1 batch norm sees the whole batch everywhere."""
    cases = 0
    for size, extractor, schedule in product((2, 5), EXTRACTORS, SCHEDULES):
        objective = FINAL if schedule == "two_phase" and size == 5 else ALL
        x, y = networks.batch(size)
        expected = oracle(lambda: networks.normalised(5), objective, x, y)
        stage = synchronised(networks.normalised, runtime, extractor)
        engine = ParallelEngine(stage, objective, schedule=schedule, seed=5)  # type: ignore[arg-type]
        case = f"B={size} {extractor} {schedule} {objective}"
        check(case, stage, engine, expected, x, y)
        assert_same_buffers(case, stage, expected.buffers)
        cases += 1
    return cases


@pytest.mark.parametrize(("replicas", "ranks"), [(2, 1), (2, 2), (3, 1)])
def test_replicas_see_the_whole_batch(replicas: int, ranks: int) -> None:
    world = replicas * ranks
    assert run_ranks(replicated, world, replicas=replicas) == [2 * 3 * 2] * world


def microbatches(runtime: Runtime) -> None:
    """Microbatch m is that of all replicas: as if one process had cut these rows together."""
    x, y = networks.batch(12)
    together = torch.tensor([0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11])  # R = 2, M = 3
    for extractor, schedule in product(("replicated", "root"), SCHEDULES):
        single = Stage(networks.normalised(5), alone(), extractor=extractor)  # type: ignore[arg-type]
        settings: Any = {"schedule": schedule, "microbatches": 3, "seed": 5}
        ParallelEngine(single, Objective(), **settings).step(x[together], y[together])
        stage = synchronised(networks.normalised, runtime, extractor)
        ParallelEngine(stage, Objective(), **settings).step(x, y)
        for name, gradient in gradients(stage).items():
            difference = (gradient - gradients(single)[name]).abs().max()
            assert difference < TOLERANCE, f"{extractor} {schedule}: {name} is off by {difference}"
        assert_same_buffers(f"{extractor} {schedule}", stage, dict(single.named_buffers()))


@pytest.mark.parametrize("ranks", [2, 4])
def test_replicas_see_a_microbatch_together(ranks: int) -> None:
    run_ranks(microbatches, ranks, replicas=2)


def streams(runtime: Runtime) -> None:
    """Ragged batches begin streams of their own; some shards are empty."""
    objective, sizes = Objective(0.4), (6, 6, 6, 5, 5, 2)
    for staleness, m in ((1, 1), (1, 3), (2, 3)):
        expected = late(lambda: networks.normalised_extractor(5), objective, sizes, staleness)
        stage = synchronised(networks.normalised_extractor, runtime, "sharded")
        streamed(stage, objective, sizes, microbatches=m, staleness=staleness)
        assert_same_state(f"S={staleness} M={m}", stage, expected)
    expected = late(lambda: networks.normalised(5), objective, sizes, 1)
    for extractor in EXTRACTORS:
        stage = synchronised(networks.normalised, runtime, extractor)
        streamed(stage, objective, sizes)
        assert_same_state(extractor, stage, expected)


def assert_same_state(case: str, stage: Stage, expected: dict[str, Tensor]) -> None:
    for name, tensor in stage.state_dict().items():
        assert (tensor.cpu().double() - expected[name].double()).abs().max() < TOLERANCE, f"{case}: {name}"


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (3, 1), (4, 2)])
def test_streams_end_with_the_weights_of_the_definition(ranks: int, replicas: int) -> None:
    run_ranks(streams, ranks, replicas=replicas)


def data_parallel(runtime: Runtime) -> None:
    """Against one process with as many microbatches; shares of all sizes, ranks without a row too."""
    ranks = runtime.world_size
    for size, (m, checkpointing) in product((2, 5, 12), ((1, False), (2, False), (1, True))):
        if size < 2 * m:
            continue  # one process refuses a microbatch of one row
        x, y = networks.batch(size)
        single = Stage(networks.normalised(3), alone(), placement=Copies(3, 1))
        BPEngine(single, Objective(), microbatches=m, checkpointing=checkpointing).step(x, y)
        stage = Stage(networks.normalised(3), runtime, placement=Copies(3, ranks), sync_batchnorm=True)
        engine = BPEngine(stage, Objective(), microbatches=m, checkpointing=checkpointing)
        engine.step(x, y)
        case = f"B={size} M={m} checkpointing={checkpointing}"
        expected = gradients(single)
        assert_close_gradients(case, gradients(stage), expected)
        assert_same_buffers(case, stage, dict(single.named_buffers()))
        evaluated = runtime.sum("measures", engine.evaluate(x, y).measures())
        alike = BPEngine(single, Objective()).evaluate(x, y).measures()
        assert torch.allclose(evaluated.cpu(), alike.cpu()), case


@pytest.mark.parametrize("ranks", [2, 3])
def test_ddp_sees_a_microbatch_together(ranks: int) -> None:
    run_ranks(data_parallel, ranks)
