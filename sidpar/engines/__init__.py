"""Engines execute steps. All have the interface of `Engine`, and the trainer asks no more of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sidpar.errors import UsageError
from sidpar.objective import Objective
from sidpar.specs import CascadeSpecs
from sidpar.stage import Stage
from sidpar.theory import MEASURES, measure


@dataclass(frozen=True)
class StepResult:
    """What one batch showed of this rank's n refiners. Nothing is computed until it is asked for.

    `log_beliefs[k]` holds the microbatches [b, C] (or [b, T, C]) of one log-belief: k = 0 is what the first of these
    refiners received, its teacher; k = 1..n is what each of them returned.
    """

    objective: Objective
    alphas: Sequence[float]
    refiners: range
    log_beliefs: Sequence[Sequence[Tensor]]
    y: Tensor

    @property
    def samples(self) -> int:
        return self.y.numel()

    def measures(self) -> Tensor:
        """`theory.MEASURES` of this rank's refiners, summed over the batch: [n, 6], float64."""
        log_beliefs = torch.stack([torch.cat(list(microbatches)) for microbatches in self.log_beliefs])
        return measure(self.objective, self.alphas, log_beliefs, self.y)

    @property
    def loss(self) -> Tensor:
        """Mean local loss of each of this rank's refiners, [n]."""
        return self._mean("loss")

    @property
    def accuracy(self) -> Tensor:
        """Share of correct predictions of each of this rank's refiners, [n]."""
        return self._mean("correct")

    def _mean(self, column: str) -> Tensor:
        return self.measures()[:, MEASURES.index(column)] / self.samples


class Engine(Protocol):
    """Executes steps over a stage."""

    stage: Stage
    objective: Objective
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


def check_batch(x: Tensor, y: Tensor, specs: CascadeSpecs, num_classes: int) -> None:
    """Refuse a batch that does not fit the cascade. Waits for the device, so not for every step."""
    if x.shape[0] == 0 or x.shape[0] != y.shape[0]:
        raise UsageError(
            f"a batch needs as many labels as inputs, at least one, got {x.shape[0]} inputs and {y.shape[0]} labels"
        )
    per_sample = specs.states[0][0].shape[:-1]
    if tuple(y.shape[1:]) != per_sample:
        raise UsageError(
            f"the cascade's beliefs are [B, *{list(per_sample)}, C], so labels must be [B, *{list(per_sample)}], "
            f"got {list(y.shape)}"
        )
    if y.dtype != torch.int64:
        raise UsageError(f"labels must be int64, got {y.dtype}")
    if y.min() < 0 or y.max() >= num_classes:
        raise UsageError(f"labels must lie in 0..{num_classes - 1}, got {int(y.min())}..{int(y.max())}")
