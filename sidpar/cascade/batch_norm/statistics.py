"""Batch norm of rows that lie in several places, each of which computes its own part of the forward and the backward.

Shapes: x [N, C, ...], C channels. Everything but x and what is returned is in fp32, in fp64 where x is. Formulas: Ioffe
and Szegedy 2015; the variances of parts are joined as by Chan, Golub and LeVeque 1979, which loses no digits.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sharing(Protocol):
    """Those who have the rows of one batch together. All of them call the same, in the same order."""

    @property
    def counts(self) -> bool:
        """Whether the rows here count. Where they do not, one is computed all the same, because the others wait."""

    def gather(self, row: Tensor) -> Tensor:
        """Everyone's row [k], in one order for all: [n, k]."""

    def sum(self, sums: Tensor) -> Tensor:
        """The sum of everyone's, of the same shape."""


def batch_norm(
    sharing: Sharing,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """x normalised by the statistics of everyone's rows, as `torch.nn.functional.batch_norm` does in training with all
    of them in one place; the running statistics, where there are any, move."""
    with torch.no_grad():
        mean, variance, values = _statistics(sharing, x)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = variance * (values / (values - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        inverse = (variance + eps).rsqrt()
    normalised: Tensor = _Normalise.apply(sharing, x, weight, bias, mean, inverse, values)
    return normalised


def precision(dtype: torch.dtype) -> torch.dtype:
    """In which the statistics of numbers of this dtype are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _statistics(sharing: Sharing, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel, [C], and how many values it has, []."""
    channels, values = x.shape[1], x.numel() // x.shape[1]
    row = torch.zeros(2 * channels + 1, dtype=precision(x.dtype), device=x.device)
    if sharing.counts and values:
        variance, mean = torch.var_mean(x.to(row.dtype), _but_channels(x), correction=0)
        torch.cat([mean, variance, row.new_full((1,), values)], out=row)
    means, variances, counts = torch.split(sharing.gather(row), [channels, channels, 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean).square())).sum(0) / total
    return mean, variance, total


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation * weight + bias, whose backward knows that mean and deviation are of everyone's x."""

    @staticmethod
    def forward(
        ctx: Any,
        sharing: Sharing,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        values: Tensor,
    ) -> Tensor:
        ctx.sharing = sharing
        ctx.save_for_backward(x, weight, mean, inverse, values)
        scale = _along(x, inverse if weight is None else inverse * weight)
        centred = x - _along(x, mean)
        output = centred * scale if bias is None else torch.addcmul(_along(x, bias.to(mean.dtype)), centred, scale)
        return output.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sharing: Sharing = ctx.sharing
        x, weight, mean, inverse, values = ctx.saved_tensors
        own = gradient.to(mean.dtype)
        normalised = (x - _along(x, mean)) * _along(x, inverse)
        sums = torch.cat([own.sum(_but_channels(x)), (own * normalised).sum(_but_channels(x))])
        for_bias, for_weight = sums.chunk(2)
        _, reads_x, reads_weight, reads_bias, *_ = ctx.needs_input_grad
        for_x = None
        if reads_x:
            shared = sharing.sum(sums if sharing.counts else torch.zeros_like(sums))
            of_mean, of_deviation = (_along(x, part) for part in (shared / values).chunk(2))
            scale = _along(x, inverse if weight is None else inverse * weight)
            for_x = ((own - of_mean - normalised * of_deviation) * scale).to(x.dtype)
            if not sharing.counts:
                for_x.zero_()
        return None, for_x, for_weight if reads_weight else None, for_bias if reads_bias else None, None, None, None


def _but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _along(x: Tensor, of_channels: Tensor) -> Tensor:
    """[C] as [1, C, 1, ...]."""
    return of_channels.view(1, -1, *[1] * (x.dim() - 2))
