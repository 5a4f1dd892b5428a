"""Symmetric label noise: a share of the labels is changed, each to one of the other classes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sidpar.errors import UsageError
from sidpar.seeding import generator


@dataclass(frozen=True)
class MovedLabels:
    """The labels that were changed: their positions in the training set in ascending order, and the labels before and
    after."""

    rows: Tensor
    old: Tensor
    new: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the run folder."""
        return {"rows": self.rows.tolist(), "old": self.old.tolist(), "new": self.new.tolist()}


def move_labels(labels: Tensor, num_classes: int, share: float, seed: int) -> tuple[Tensor, MovedLabels]:
    """Labels [N] of which round(share x N), chosen by the seed, are changed, each to one of the other C - 1 classes
    with equal probability."""
    if not 0 <= share < 1:
        raise UsageError(f"the share of labels to change must lie in [0, 1), got {share}")
    count = round(share * len(labels))
    randomness = generator(seed, "label noise")
    rows = torch.randperm(len(labels), generator=randomness)[:count].sort().values
    old = labels[rows]
    new = (old + torch.randint(1, num_classes, (count,), generator=randomness)) % num_classes
    noisy = labels.clone()
    noisy[rows] = new
    return noisy, MovedLabels(rows, old, new)
