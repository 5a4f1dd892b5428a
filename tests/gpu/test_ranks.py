"""Ranks that share one GPU and talk over gloo: gradients show whether the engines' messages of CUDA tensors are right.

A few cases of each engine; torch's pipelines need NCCL for CUDA tensors. `pytest tests/engines/test_parity.py --device
cuda`, and so on, has all cases, and takes many minutes.
"""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from sidpar import BPEngine, Objective, ParallelEngine, Runtime, Stage
from tests import networks
from tests.engines.backpropagation.test_whole import plain_backpropagation, whole
from tests.engines.test_streaming import compare, late, streamed
from tests.harness import DEVICE, compute_on, run_ranks
from tests.oracle import assert_close_gradients, check, gradients, oracle

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]

EXTRACTORS = ("replicated", "root", "sharded")
OBJECTIVE = Objective(0.4)


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    compute_on("cuda")
    yield
    compute_on(DEVICE)


def local_learning(runtime: Runtime) -> None:
    x, y = networks.batch(7)
    reference = oracle(lambda: networks.with_hidden_state(5), OBJECTIVE, x, y)
    for extractor, schedule in product(EXTRACTORS, ("fused", "two_phase")):
        stage = Stage(networks.with_hidden_state(5), runtime, extractor=extractor)  # type: ignore[arg-type]
        engine = ParallelEngine(stage, OBJECTIVE, schedule=schedule, microbatches=2, seed=5)  # type: ignore[arg-type]
        check(f"{extractor} {schedule}", stage, engine, reference, x, y, evaluate=schedule == "fused")


def streams(runtime: Runtime) -> None:
    sizes = (6, 6, 6, 5)
    expected = late(lambda: networks.plain(5), OBJECTIVE, sizes, 1)
    for extractor in EXTRACTORS:
        stage = Stage(networks.plain(5), runtime, extractor=extractor)  # type: ignore[arg-type]
        streamed(stage, OBJECTIVE, sizes, microbatches=3, staleness=1)
        compare(extractor, stage, expected)


def backpropagation(runtime: Runtime) -> None:
    x, y = networks.batch(7)
    expected = plain_backpropagation(networks.plain(4), Objective(), x, y)
    stage = whole(networks.plain(4), runtime)
    BPEngine(stage, Objective(), microbatches=2).step(x, y)
    assert_close_gradients("ddp", gradients(stage), expected)


def batch_norm(runtime: Runtime) -> None:
    """Statistics of all ranks; one of four has no rows to extract."""
    x, y = networks.batch(5)
    reference = oracle(lambda: networks.normalised_extractor(5), OBJECTIVE, x, y)
    for schedule in ("fused", "two_phase"):
        stage = Stage(networks.normalised_extractor(5), runtime, sync_batchnorm=True)
        engine = ParallelEngine(stage, OBJECTIVE, schedule=schedule, microbatches=3, seed=5)  # type: ignore[arg-type]
        check(schedule, stage, engine, reference, x, y)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("function", [local_learning, streams, backpropagation, batch_norm])
def test_gradients_are_those_of_one_process(function: object, ranks: int) -> None:
    run_ranks(function, ranks, timeout=100)  # type: ignore[arg-type]
