"""A cascade whose modules sleep instead of computing, so that the concurrency of more ranks than cores can be measured.

Everything else is real: messages, autograd, parameters, losses. A sleeping rank uses no core. Times are in proportion
to the rows of a microbatch. The backward sleeps half towards the input and half towards the weights, in autograd nodes
of their own, so that a schedule that splits the backward can split it as it would split real work.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble


def emulated(
    num_refiners: int,
    num_classes: int = 10,
    *,
    refiner_seconds: float,
    extractor_seconds: float,
    layers: int = 4,
    width: int = 32,
    seed: int = 0,
) -> Cascade:
    """Images [B, ...] with `width` values each.

    Args:
        refiner_seconds: of one refiner's forward, per row; its backward takes twice as long.
        extractor_seconds: of the extractor's forward, per row; its backward takes twice as long.
        layers: of the extractor, each with the same share of its time.
        width: D, and the number of values of an image.
    """
    return assemble(
        lambda: nn.Sequential(*(SleepingLinear(width, width, extractor_seconds / layers) for _ in range(layers))),
        lambda: SleepingRefiner(width, num_classes, refiner_seconds),
        num_classes,
        num_refiners,
        seed,
    )


class SleepingLinear(nn.Module):
    """A linear map [B, n] to [B, m] that takes `seconds` per row, and twice that in the backward."""

    def __init__(self, inputs: int, outputs: int, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self._seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        forward = self._seconds * len(x)
        time.sleep(forward)
        weight: Tensor = self.linear.weight
        if torch.is_grad_enabled():
            # Without an input to differentiate there is no node on its path: then the weights take all.
            share = 0.5 if x.requires_grad else 1.0
            weight = _SleepInBackward.apply(weight, 2 * forward * share)
            if x.requires_grad:
                x = _SleepInBackward.apply(x, 2 * forward * (1 - share))
        return F.linear(x, weight, self.linear.bias)


class SleepingRefiner(nn.Module):
    """concat(belief, features) to logits [B, C]."""

    def __init__(self, width: int, num_classes: int, seconds: float) -> None:
        super().__init__()
        self.layer = SleepingLinear(num_classes + width, num_classes, seconds)

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layer(torch.cat([log_belief.exp(), features], dim=-1))
        return logits


class _SleepInBackward(torch.autograd.Function):
    """The identity, whose backward takes `seconds`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, seconds: float) -> Tensor:
        ctx.seconds = seconds
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.seconds)
        return gradient, None
