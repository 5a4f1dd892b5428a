"""A residual block that costs as much as a refiner, and the head after such blocks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """h + MLP(h): [B, D] to [B, D]."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([width, *hidden]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], width))

    def forward(self, h: Tensor) -> Tensor:
        following: Tensor = h + self.layers(h)
        return following


class Head(nn.Module):
    """Features [B, D] to logits [B, C]; the belief that it receives is not used."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.linear(features)
        return logits


def equal_cost(width: int, hidden: Sequence[int], num_classes: int) -> list[int]:
    """Hidden sizes, all alike, with which a `ResidualBlock` multiplies as often as a `ConcatRefiner` with `hidden`.

    D h + (n - 1) h^2 + h D = the refiner's multiplications, solved for h.
    """
    refiner = sum(before * after for before, after in pairwise([num_classes + width, *hidden, num_classes]))
    squares = len(hidden) - 1
    if squares == 0:
        return [max(1, round(refiner / (2 * width)))]
    size = (-width + math.sqrt(width * width + squares * refiner)) / squares
    return [max(1, round(size))] * len(hidden)
