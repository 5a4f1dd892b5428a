"""Copies of modules, also of those that `copy.deepcopy` refuses."""

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def duplicate(module: Module, replaced: Mapping[int, object] | None = None, *, device: str | None = None) -> Module:
    """A copy with its own parameters and buffers. An activation that a module keeps as an attribute, for inspection or
    as `weight_norm` does, is copied without its graph.

    Args:
        replaced: objects that are used in place of others instead of copies, by the `id` of the others.
        device: where such activations, and other tensors that are attributes, are copied to.
    """
    memo = {
        id(value): value.detach().to(device or value.device, copy=True)
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and (device or not value.is_leaf)
    }
    return copy.deepcopy(module, {**memo, **(replaced or {})})
