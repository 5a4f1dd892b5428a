"""Sections as modules: half precision and memory formats at their seams, random masks, sections without parameters."""

import pytest
import torch

from sidpar import BPEngine, Compute, Copies, Objective, PipelineEngine, Runtime, Stage, make_cut
from sidpar.config.groups.optim import OptimConfig
from sidpar.training.optim import Optimizers
from tests import networks
from tests.engines.backpropagation.test_pipeline import NETWORKS, SCHEDULES
from tests.engines.backpropagation.test_whole import plain_backpropagation
from tests.harness import run_ranks
from tests.oracle import assert_close_gradients, gradients

pytestmark = pytest.mark.processes


def without_parameters(runtime: Runtime) -> None:
    """Sections of Flatten alone and of tanh alone, and a module that occurs twice."""
    x, y = networks.batch(8)
    expected = plain_backpropagation(networks.flat(3), Objective(), x, y)
    for schedule, counts in (("1f1b", (1, 8)), ("gpipe", (1, 8)), ("zbv", (1, 1, 1, 6)), ("zero_bubble", (2, 1, 1, 5))):
        if schedule not in SCHEDULES:
            continue
        placement = make_cut(schedule, "cut", 2, [1.0] * 6, [1.0] * 3, counts=counts)  # type: ignore[arg-type]
        stage = Stage(networks.flat(3), runtime, placement=placement)
        engine = PipelineEngine(stage, Objective(), schedule=schedule, microbatches=4)  # type: ignore[arg-type]
        optimizers = Optimizers(stage.parts(), OptimConfig(name="sgd", lr=1e-300), steps_per_epoch=1)
        for _ in range(2):
            engine.step(x, y)
            engine.clip(1e9, stage.parts())
            optimizers.update(stage.parts())
        found = gradients(stage)
        if found:
            assert_close_gradients(schedule, found, expected)
        assert engine.evaluate(x, y).samples == 8


def test_a_rank_may_hold_no_parameters() -> None:
    run_ranks(without_parameters, 2)


def compiled(runtime: Runtime) -> None:
    build = NETWORKS["cascade, extractor cut"][0]
    x, y = networks.batch(8)
    placement = make_cut("1f1b", "cut", 2, [1.0] * 3, [1.0] * 9, counts=[2, 10])
    stage = Stage(build(), runtime, placement=placement, compute=Compute(compile=True))
    PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=2).step(x, y)
    assert_close_gradients("compiled", gradients(stage), plain_backpropagation(build(), Objective(), x, y))


def test_a_compiled_pipeline() -> None:
    run_ranks(compiled, 2, timeout=300, step_timeout=120)


def half_precision(runtime: Runtime) -> None:
    """Convolutions in channels_last, cut between them: activations travel in bf16, contiguous."""
    compute = Compute("bf16", channels_last=True)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 2, 4, 4, generator=generator), torch.arange(8) % networks.CLASSES
    alone = Stage(networks.convolutional().float(), Runtime.single("cpu"), placement=Copies(5, 1), compute=compute)
    BPEngine(alone, Objective()).step(x, y)
    expected = gradients(alone)
    for schedule, counts in (("1f1b", (3, 7)), ("zero_bubble", (1, 2, 5, 2)), ("zbv", (1, 2, 5, 2))):
        if schedule not in SCHEDULES:
            continue
        placement = make_cut(schedule, "cut", 2, [1.0] * 5, [1.0] * 5, counts=counts)  # type: ignore[arg-type]
        stage = Stage(networks.convolutional().float(), runtime, placement=placement, compute=compute)
        engine = PipelineEngine(stage, Objective(), schedule=schedule, microbatches=4)  # type: ignore[arg-type]
        engine.step(x, y)
        for name, gradient in gradients(stage).items():
            scale = expected[name].abs().max()
            assert (gradient - expected[name]).abs().max() < 0.1 * scale, f"{schedule}: {name}"
        if schedule == "1f1b" and runtime.rank == 0:
            assert engine.traffic.sent["activation"].bytes == 8 * (8 * 4 * 4) * 2, "[8, 4, 4] per sample, 2 bytes each"


def test_half_precision_and_memory_format() -> None:
    run_ranks(half_precision, 2)


def masks(runtime: Runtime) -> None:
    """Dropout masks do not depend on where the cascade is cut."""
    found = []
    for counts in ((2, 4), (5, 1)):
        placement = make_cut("gpipe", "root", 2, [1.0], [1.0] * 6, counts=counts)
        engine = PipelineEngine(
            Stage(networks.with_dropout(6), runtime, placement=placement), Objective(), schedule="gpipe", microbatches=2
        )
        x, y = networks.batch(8)
        engine.step(x, y)
        engine.step(x, y)
        total = sum(gradient.abs().sum() for gradient in gradients(engine.stage).values())
        found.append(runtime.sum("gradients", torch.as_tensor(total).reshape(1)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_masks_do_not_depend_on_the_cut() -> None:
    run_ranks(masks, 2)
