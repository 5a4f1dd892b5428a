"""Multiply-adds by torch's own counter: the same on every machine, where seconds are not."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sidpar.cascade.cascade import Cascade
from sidpar.models.cutting.refiner import LayersRefiner
from sidpar.models.cutting.tracing import in_mode

Result = TypeVar("Result")


def counted(compute: Callable[[], Result]) -> tuple[Result, int]:
    """A result, and the multiply-adds of matrix products, convolutions and attention on the way to it."""
    # Attention as matrix products: the kernels that are faster are not all counted.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = compute()
    return result, counter.get_total_flops() // 2


def shares_of_heads(cascade: Cascade, x: Tensor) -> str | None:
    """What a cut adds to a network, in words: the share of the heads, and of what reads features, in all parameters and
    in the multiply-adds of a forward of x [1, ...]. None of a cascade that was not cut from a network."""
    refiners = [refiner for refiner in cascade.refiners if isinstance(refiner, LayersRefiner)]
    if len(refiners) != len(cascade.refiners):
        return None
    added = [part for refiner in refiners for part in (refiner.head, refiner.reader) if part is not None]
    calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
    hooks = [part.register_forward_hook(lambda module, given, _: calls.append((module, given))) for part in added]
    with in_mode(cascade, training=False):
        try:
            _, total = counted(lambda: list(cascade.states(x.clone().requires_grad_())))
        finally:
            for hook in hooks:
                hook.remove()
        of_heads = sum(counted(partial(module, *given))[1] for module, given in calls)
    parameters, own = (sum(p.numel() for part in parts for p in part.parameters()) for parts in ([cascade], added))
    return (
        f"{100 * own / parameters:.1f} % of {parameters:,} parameters, "
        f"{100 * of_heads / max(total, 1):.1f} % of {total:,} multiply-adds an image"
    )
