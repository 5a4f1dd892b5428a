"""Steps on a GPU: what they compute, and that the host never waits in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import BPEngine, LocalEngine, Objective, ParallelEngine, Runtime, Stage, StreamingEngine
from sidpar.cascade.batch_norm.module import Company, synchronise
from sidpar.cascade.batch_norm.stand_ins import SameRows
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.optim import OptimConfig
from sidpar.engines.base import Engine
from sidpar.models.simple_cnn import simple_cnn
from sidpar.schedules.placement import Copies
from sidpar.training.meter import Meter
from sidpar.training.optim import Optimizers
from tests import networks
from tests.oracle import gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

Make = Callable[[Stage], Engine]
LOCAL: dict[str, Make] = {
    "local": lambda stage: LocalEngine(stage, Objective()),
    "fused": lambda stage: ParallelEngine(stage, Objective(), microbatches=2),
    "two_phase": lambda stage: ParallelEngine(stage, Objective(), schedule="two_phase", microbatches=2),
    "stacked": lambda stage: ParallelEngine(stage, Objective(), refiner_execution="stacked"),
    "streaming": lambda stage: StreamingEngine(stage, Objective(), microbatches=2),
}
ENGINES: dict[str, Make] = {
    **LOCAL,
    "bp": lambda stage: BPEngine(stage, Objective(), microbatches=2),
    "bp checkpointing": lambda stage: BPEngine(stage, Objective(), checkpointing=True),
}
NETWORKS: dict[str, tuple[Callable[[], Cascade], int | None]] = {
    "plain": (lambda: networks.plain(4), None),
    "hidden": (lambda: networks.with_hidden_state(4), None),
    "tokens": (lambda: networks.tokens(4), networks.INPUTS),
}


def place(name: str, cascade: Cascade, runtime: Runtime) -> Stage:
    copies = Copies(len(cascade.refiners), 1) if name.startswith("bp") else None
    return Stage(cascade, runtime, placement=copies)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ENGINES)
def test_gradients_are_those_of_the_cpu(name: str, network: str) -> None:
    """In float64, relative to the largest entry of each."""
    build, tokens = NETWORKS[network]
    found = []
    for runtime in (Runtime.single("cpu"), Runtime.single("cuda")):
        stage = place(name, build(), runtime)
        ENGINES[name](stage).step(*networks.batch(8, tokens))
        found.append(gradients(stage))
    for key, expected in found[0].items():
        assert (found[1][key] - expected).abs().max() <= 1e-10 * expected.abs().max(), key


@contextmanager
def without_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.cuda(), y.cuda()


def pinned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x.pin_memory(), y.pin_memory()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_statistics_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    """Two ranks with the same rows are made up; the host waits for nothing."""
    x, found = torch.randn(16, 8, 5, 5).to(dtype), []
    for device in ("cpu", "cuda"):
        norm, company, given = nn.BatchNorm2d(8).to(device), Company(), x.detach().to(device).requires_grad_()
        synchronise(norm, company)
        with company.joined(SameRows(2)), without_waiting() if device == "cuda" else nullcontext():
            output = norm(given)
            output.float().sin().sum().backward()
        assert given.grad is not None
        found.append([output, given.grad, *(p.grad for p in norm.parameters()), *norm.buffers()])
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.float(), other.float().cpu(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [on_gpu, pinned])
@pytest.mark.parametrize("name", ENGINES)
def test_the_host_does_not_wait_in_a_step(name: str, batch: Any) -> None:
    """Nor in the update, clipping and the record of measures; from the third batch of a shape on."""
    torch.manual_seed(0)
    stage = place(name, simple_cnn((3, 32, 32), 10, 4), Runtime.single("cuda"))
    engine = ENGINES[name](stage)
    optimizers = Optimizers(stage.parts(), OptimConfig(lr=1e-3), steps_per_epoch=10)
    meter = Meter(engine)
    data = [batch(torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))) for _ in range(6)]

    def update(parts: Any) -> None:
        engine.clip(1.0, parts)
        optimizers.update(parts)

    def train(batches: list[Any]) -> None:
        for result in engine.train(batches, update):
            meter.add(result, engine.steps)

    train(data[:3])
    with without_waiting():
        train(data[3:])
    assert all(value == value for value in meter.read()["loss"])
