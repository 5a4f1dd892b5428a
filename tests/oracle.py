"""What the local engine finds, and how another engine's findings are compared with it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sidpar import LocalEngine, Objective, Stage
from sidpar.cascade.cascade import Cascade
from sidpar.engines.base import Engine
from sidpar.rules.base import LocalRule
from tests.harness import alone

TOLERANCE = 1e-10


class Reference(NamedTuple):
    """What the oracle found: gradients by global name, and every refiner's measures in training and evaluation."""

    gradients: dict[str, Tensor]
    training: Tensor
    evaluation: Tensor
    buffers: dict[str, Tensor]


def oracle(build: Callable[[], Cascade], objective: Objective | LocalRule, x: Tensor, y: Tensor) -> Reference:
    stage = Stage(build(), alone())
    engine = LocalEngine(stage, objective, seed=5)
    training = engine.step(x, y).measures().cpu()
    evaluation = engine.evaluate(x, y).measures().cpu()
    return Reference(gradients(stage), training, evaluation, {n: b.cpu() for n, b in stage.named_buffers()})


def gradients(stage: Stage) -> dict[str, Tensor]:
    """By global name, on the CPU; a parameter that no loss reaches has the gradient zero."""
    return {
        name: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).cpu()
        for name, parameter in stage.named_parameters()
    }


def assert_close_gradients(case: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Per parameter, within TOLERANCE of its largest entry, which is not 0: a gradient that fades through a long chain
    would pass any absolute tolerance."""
    assert found, case
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        difference = (gradient - expected[name]).abs().max().item()
        assert scale > 0, f"{case}: nothing to compare for {name}"
        assert difference <= TOLERANCE * scale, f"{case}: the gradient of {name} is off by {difference} of {scale}"


def check(
    case: str, stage: Stage, engine: Engine, reference: Reference, x: Tensor, y: Tensor, *, evaluate: bool = True
) -> None:
    """One step, then one evaluation, of this rank's stage against the oracle."""
    own = slice(stage.own_refiners.start, stage.own_refiners.stop)
    training = over_replicas(stage, engine.step(x, y).measures())
    found = gradients(stage)
    assert found, case
    for name, gradient in found.items():
        difference = (gradient - reference.gradients[name]).abs().max().item()
        assert difference < TOLERANCE, f"{case}: the gradient of {name} is off by {difference}"
    for name, buffer in stage.named_buffers():
        assert torch.allclose(buffer.cpu().double(), reference.buffers[name].double()), f"{case}: {name}"
    assert torch.allclose(training, reference.training[own]), f"{case}: measures in training"
    if evaluate:
        evaluation = over_replicas(stage, engine.evaluate(x, y).measures())
        assert torch.allclose(evaluation, reference.evaluation[own]), f"{case}: measures in evaluation"


def over_replicas(stage: Stage, measures: Tensor) -> Tensor:
    """The sum over all replicas of this rank's refiners, each of which has seen its share of the batch; on the CPU."""
    measures = measures.cpu()
    if stage.runtime.groups is not None and stage.runtime.groups.replicas is not None:
        dist.all_reduce(measures, group=stage.runtime.groups.replicas.refiner_gradients)
    return measures
