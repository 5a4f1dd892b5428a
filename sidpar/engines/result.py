"""The result of one step or evaluation for a rank's refiners."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidpar.rules.base import LocalRule


@dataclass(frozen=True)
class StepResult:
    """What one batch showed of this rank's n refiners. Nothing is computed until it is asked for."""

    rule: LocalRule
    """What the refiners learned from, or are measured by."""
    refiners: Sequence[int]
    """The numbers of this rank's refiners, in the whole cascade."""
    received: Mapping[int, Sequence[Tensor]]
    """For every i of `refiners`, what the rule keeps of the states that refiner i received, per microbatch: by default
    the teacher's log-belief [b, C] or [b, T, C]."""
    returned: Mapping[int, Sequence[Tensor]]
    """The same for the states that refiner i returned."""
    y: Tensor
    """Labels of the rows that entered, [b] or [b, T]: of the whole batch, or of this rank's share of it."""
    samples: int
    """Labels of the whole batch: B, or B x T."""
    batch_size: int
    """The size B of the global batch."""
    diagnosis: dict[str, Any] | None = None
    """What `StreamingEngine` observed at this step, if `diagnose_every` asks for it."""

    def measures(self) -> Tensor:
        """`rule.measures` of this rank's refiners, summed over its share of the batch: [n, k], float64."""
        if not self.refiners:
            return torch.zeros(0, len(self.rule.measures), dtype=torch.float64, device=self.y.device)
        received, returned = (
            torch.stack([_whole(kept[i]) for i in self.refiners]) for kept in (self.received, self.returned)
        )
        return self.rule.measure(self.refiners, received, returned, self.y)

    @property
    def loss(self) -> Tensor:
        """Mean local loss of each of this rank's refiners, [n], over this rank's share of the batch."""
        return self._mean("loss")

    @property
    def accuracy(self) -> Tensor:
        """Accuracy of each of this rank's refiners, [n] in 0..1, over this rank's share of the batch."""
        return self._mean("correct")

    def _mean(self, column: str) -> Tensor:
        return self.measures()[:, self.rule.measures.index(column)] / max(1, self.y.numel())


def _whole(microbatches: Sequence[Tensor]) -> Tensor:
    return microbatches[0] if len(microbatches) == 1 else torch.cat(list(microbatches))
