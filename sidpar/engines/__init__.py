"""Engines execute steps. All have the interface of `Engine`, and the trainer asks no more of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sidpar.objective import Objective
from sidpar.stage import Stage
from sidpar.theory import measure


@dataclass(frozen=True)
class StepResult:
    """What one batch showed of this rank's refiners. Nothing is computed until `measures` is called.

    `log_beliefs` is [n + 1, B, ..., C]: the teacher of the first of this rank's n refiners, then every refiner's.
    """

    objective: Objective
    alphas: Sequence[float]
    refiners: range
    log_beliefs: Sequence[Tensor]
    y: Tensor

    @property
    def samples(self) -> int:
        return self.y.numel()

    def measures(self) -> Tensor:
        """`theory.MEASURES` of this rank's refiners, summed over the batch: [n, 6], float64."""
        return measure(self.objective, self.alphas, torch.stack(list(self.log_beliefs)), self.y)


class Engine(Protocol):
    """Executes steps over a stage."""

    stage: Stage
    steps: int
    """Steps done so far: random masks depend on it, so a resumed run sets it."""

    def step(self, x: Tensor, y: Tensor) -> StepResult:
        """Gradients of one global batch into `stage.parameters()`, replacing those that were there.

        Args:
            x: inputs [B, ...], the same on every rank.
            y: labels [B] or [B, T], int64 in 0..C-1, the same on every rank.
        """

    def evaluate(self, x: Tensor, y: Tensor) -> StepResult:
        """Beliefs of one batch in inference mode; no gradients."""
