"""Copies of modules, also of those that `copy.deepcopy` refuses."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def duplicate(module: Module, replaced: Mapping[int, object] | None = None, *, device: str | None = None) -> Module:
    """A copy with its own parameters and buffers. An activation that a module has kept, for somebody to look at or to
    be computed from others (`weight_norm`), is copied without its graph.

    Args:
        replaced: objects by the `id` of those that they stand for, which are not copied.
        device: where such activations, and other tensors that are attributes, are copied to.
    """
    memo = {
        id(value): value.detach().to(device or value.device, copy=True)
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and (device or not value.is_leaf)
    }
    return copy.deepcopy(module, {**memo, **(replaced or {})})
