"""Which process groups a world has, and what NCCL is told about them."""

from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sidpar import Runtime
from sidpar.distributed import runtime as runtime_module
from sidpar.distributed.groups import BYTES_PER_CTA, FEW_CTAS, SUMMING_CTAS, nccl_bytes, nccl_options, neighbours
from tests.harness import run_ranks


def sizes(runtime: Runtime) -> tuple[int, int, int]:
    """Of the default group, and of those within a cascade and over replicas; 0 where there are none."""
    groups = runtime.groups
    assert groups is not None
    cascade, replicas = groups.cascade, groups.replicas
    of_cascade = 0 if cascade is None else cascade.features.size()
    of_replicas = 0 if replicas is None else replicas.refiner_gradients.size()
    return groups.default.size(), of_cascade, of_replicas


@pytest.mark.processes
@pytest.mark.parametrize(("ranks", "replicas", "expected"), [(2, 1, (2, 2, 0)), (2, 2, (2, 0, 2)), (4, 2, (4, 2, 2))])
def test_no_group_has_one_rank(ranks: int, replicas: int, expected: tuple[int, int, int]) -> None:
    assert run_ranks(sizes, ranks, replicas=replicas) == [expected] * ranks


@pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch is built without NCCL")
def test_nccl_is_told_to_hold_few_sms_and_whom_to_let_pass() -> None:
    chain, default = (nccl_options(timedelta(seconds=7), ctas, urgent=ctas is not None) for ctas in (FEW_CTAS, None))
    assert (chain.config.max_ctas, chain.is_high_priority_stream, chain._timeout.seconds) == (FEW_CTAS, True, 7)
    assert default.config.max_ctas != FEW_CTAS
    assert not default.is_high_priority_stream


def test_what_groups_occupy_is_not_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """On NCCL: a rank's groups, as many as `Groups.make` makes without those of statistics, of so many CTAs each."""
    assert nccl_bytes(1, 1) == BYTES_PER_CTA * SUMMING_CTAS
    assert nccl_bytes(2, 4) == BYTES_PER_CTA * (SUMMING_CTAS + (4 + 2) * FEW_CTAS)
    monkeypatch.setattr(runtime_module, "usable_memory", lambda device, sharers: 4e9 / sharers)
    alone = Runtime(rank=0, world_size=8, device=torch.device("cpu"), backend="gloo", num_replicas=2, sharers=2)
    assert alone.usable_memory == 2e9
    assert replace(alone, backend="nccl", sharers=1).usable_memory == 4e9 - nccl_bytes(2, 4)


def test_edges_of_a_chain_that_touch_have_different_turns() -> None:
    edges = list(neighbours(5))
    assert edges == [(0, 1), (2, 3), (1, 2), (3, 4)]
    assert list(neighbours(1)) == []
