"""Observes Proposition 5: how late updates of the extractor change teachers and gradients, on the same batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sidpar.engines.result import StepResult
from sidpar.stages.stage import Stage

Pass = Callable[[], StepResult]
"""A synchronous step, which leaves its gradients in the stage's parameters."""


def diagnose(
    stage: Stage, fresh: Pass, stale: Pass, weights: Sequence[Tensor], old_weights: Sequence[Tensor]
) -> dict[str, Any]:
    """Compare a pass with fresh weights, and one with those that a stream would have used. All ranks call it; all get
    the same plain data:

    - `teacher_drift`: for each refiner, mean over samples of ||q - q'|| of the belief that it receives.
    - `gradient_error`: for each refiner, ||g - g'|| / ||g'|| of its parameters' gradient, g' with fresh weights.
    - `extractor_gradient_error`: the same for the extractor.
    - `extractor_staleness`: ||w - w'|| / ||w'|| of its weights.

    Args:
        weights, old_weights: of the extractor; empty where this rank holds none.
    """
    with stage.undone():  # statistics count neither pass
        expected, gradients = fresh(), _gradients(stage)
        found, stale_gradients = stale(), _gradients(stage)
    stage.zero_grad()
    table = torch.zeros(stage.placement.num_refiners, 2, dtype=torch.float64, device=found.y.device)
    for i in found.refiners:
        drifts = [found.rule.drift(a, b) for a, b in zip(found.received[i], expected.received[i], strict=True)]
        table[i, 0] = torch.cat(drifts).double().sum() / found.samples  # each replica adds those of its share
        if stage.runtime.replica == 0:  # all have the same gradients
            table[i, 1] = _relative(stale_gradients[f"refiners.{i}"], gradients[f"refiners.{i}"])
    extractor = torch.zeros(2, dtype=torch.float64, device=found.y.device)
    if stage.runtime.rank == 0 and "extractor" in gradients:  # rank 0 holds it in every placement
        extractor[0] = _relative(stale_gradients["extractor"], gradients["extractor"])
        extractor[1] = _relative(old_weights, weights)
    drift, error = stage.runtime.sum("diagnosis", table).T.tolist()
    extractor_error, staleness = stage.runtime.sum("diagnosis of the extractor", extractor).tolist()
    return {
        "teacher_drift": drift,
        "gradient_error": error,
        "extractor_gradient_error": extractor_error,
        "extractor_staleness": staleness,
    }


def _gradients(stage: Stage) -> dict[str, list[Tensor]]:
    """Copies, by part."""
    return {
        name: [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in part.parameters()]
        for name, part in stage.parts().items()
    }


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """||found - expected|| / ||expected||, over all tensors; 0 where both are."""
    difference = torch.nn.utils.get_total_norm([a - b for a, b in zip(found, expected, strict=True)])
    scale = torch.nn.utils.get_total_norm(expected)
    return float(difference / scale) if scale > 0 else 0.0
