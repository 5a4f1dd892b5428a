"""Engines train cut networks as the oracle does, on any number of ranks, with batch norm, dropout and attention."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import Cascade, Objective, ParallelEngine, PipelineEngine, Runtime, Stage, UsageError
from sidpar.models import EXTRACTORS, MODELS
from sidpar.schedules.cut import make_cut
from tests.harness import run_ranks
from tests.oracle import TOLERANCE, check, gradients, oracle

pytestmark = [pytest.mark.processes, pytest.mark.long]

CLASSES = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 4, "head": "strided", "reads_features": True},
    "vgg11_bn": {"width": 4, "head": "conv", "belief": "concat"},
    "vit_tiny": {"width": 16, "depth": 5, "head": "mlp", "pool": "class", "belief": "none"},
}


def network(name: str) -> Callable[[], Cascade]:
    """Three refiners, in float64."""
    return lambda: MODELS[name].build((3, 32, 32), CLASSES, 3, seed=3, **SETTINGS[name]).double()


def batch(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (rows,), generator=generator)


def parity(runtime: Runtime) -> int:
    """The number of cases."""
    done, objective = 0, Objective(0.6, label_smoothing=0.1)
    x, y = batch(4)
    for name in SETTINGS:
        build = network(name)
        reference = oracle(build, objective, x, y)
        treats_rows_alone = name == "vit_tiny"
        extractors = ("replicated", "root", *(["sharded"] if treats_rows_alone else []))
        for extractor, schedule in [*product(extractors, ["fused"]), ("replicated", "two_phase")]:
            stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
            microbatches = 2 if treats_rows_alone else 1
            engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=microbatches, seed=5)  # type: ignore[arg-type]
            check(f"{name} {extractor} {schedule}", stage, engine, reference, x, y, evaluate=schedule == "fused")
            done += 1
    return done


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_gradients_equal_the_oracle(ranks: int) -> None:
    """Batch norm's statistics are those of the batch: where the extractor is sharded, they are refused (below)."""
    assert run_ranks(parity, ranks, timeout=400) == [10] * ranks


def whole(name: str, sizes: dict[str, int]) -> Cascade:
    return EXTRACTORS[name].build((3, 32, 32), CLASSES, 3, seed=3, **sizes).double()


def as_extractor(runtime: Runtime) -> None:
    """Whole networks with the paper's refiners."""
    x, y = batch(4)
    for name, sizes in {"resnet18": {"width": 4}, "vit_tiny": {"width": 16, "depth": 2}}.items():
        build = partial(whole, name, sizes)
        reference = oracle(build, Objective(), x, y)
        for extractor in ("replicated", "root"):
            stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
            check(f"{name} {extractor}", stage, ParallelEngine(stage, Objective(), seed=5), reference, x, y)


def test_whole_networks_as_extractors() -> None:
    run_ranks(as_extractor, 2)


def pipeline(runtime: Runtime) -> dict[str, Tensor]:
    """Backpropagation with the extractor's pieces, and the refiners, on ranks."""
    cascade = network("vit_tiny")()
    cut = make_cut("1f1b", "cut", runtime.world_size, [3.0] * len(cascade.extractor), [1.0] * 3)
    stage = Stage(cascade, runtime, placement=cut)
    PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=4).step(*batch(4))
    return gradients(stage)


def test_a_pipeline_cuts_the_extractor_between_its_pieces() -> None:
    cascade = network("vit_tiny")()
    x, y = batch(4)
    (cascade(x).log()[range(4), y].mean() * -1).backward()
    expected = {name: p.grad for name, p in cascade.named_parameters()}
    found = run_ranks(pipeline, 2)
    assert sum(map(len, found)) == len(expected)
    assert all(any(name.startswith("extractor") for name in each) for each in found), "it lies on both ranks"
    for name, gradient in {**found[0], **found[1]}.items():
        own = expected[name]
        assert (gradient if own is None else gradient - own).abs().max() < TOLERANCE, name


def sharded(runtime: Runtime, name: str) -> str:
    stage = Stage(network(name)(), runtime, extractor="sharded")
    with pytest.raises(UsageError) as caught:
        ParallelEngine(stage, Objective()).step(*batch(4))
    return str(caught.value)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_batch_norm_in_a_sharded_extractor_is_refused(name: str) -> None:
    first, second = run_ranks(sharded, 2, name)
    assert first == second
    assert "(BatchNorm2d)" in first
    assert "use extractor=replicated or root, or layers that treat each sample alone" in first
