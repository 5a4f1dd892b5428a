"""Undoing a pass that is made in every step, as a teacher's is, at little cost."""

from collections import deque
from collections.abc import Collection, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from operator import is_

import numpy
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sidpar.cascade.module_state import ModuleState, undone

_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that all modules have: hooks, and what is looked at one by one."""
_CONTAINERS = (list, deque, set, dict, numpy.ndarray)


def undone_as_seen(
    module: nn.Module, written: Collection[str], parameters: Collection[str]
) -> AbstractContextManager[object]:
    """What forwards within do to the module's state is undone at the end.

    Buffers, attributes and containers are put back in any case, so what a forward writes for some rows only is, too.
    Whatever else there is costs more to follow, and is put back if a trial has seen it change.

    Args:
        written: the names of what a forward has been seen to change.
        parameters: those of them that are parameters.
    """
    if parameters or any(name.endswith("_hooks") for name in written):
        return undone(module, parameters=bool(parameters))
    return _undone(module, written)


@contextmanager
def _undone(module: nn.Module, written: Collection[str]) -> Iterator[None]:
    mappings: list[_Mapping] = []
    tensors: list[_Numbers] = []
    others = ModuleState()
    for path, part in module.named_modules():
        prefix, attributes = f"{path}." if path else "", vars(part)
        mappings += [_Mapping(attributes), _Mapping(part._buffers)]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.layout == torch.strided:
                tensors.append(_Numbers(buffer, seen=f"{prefix}{name}" in written or isinstance(part, _NormBase)))
        for name in attributes.keys() - _EVERY_MODULE:
            if f"{prefix}{name}" in written or isinstance(attributes[name], _CONTAINERS):
                others.include(attributes[name], f"{prefix}{name}")
    try:
        yield
    finally:
        others.restore()
        for mapping in mappings:
            mapping.restore()
        for numbers in tensors:
            numbers.restore()


class _Mapping:
    """The attributes or buffers of a module, by identity: no number is looked at, for which a GPU would wait."""

    def __init__(self, mapping: MutableMapping[str, object]) -> None:
        self._mapping, self._items = mapping, dict(mapping)

    def restore(self) -> None:
        now, before = self._mapping, self._items
        if now.keys() != before.keys() or not all(map(is_, now.values(), before.values())):
            now.clear()
            now.update(before)


class _Numbers:
    """A buffer's, put back if torch has counted a write, or if one has been seen: batch norm's are not counted."""

    def __init__(self, buffer: Tensor, *, seen: bool) -> None:
        self._buffer, self._data, self._numbers = buffer, buffer.data, buffer.detach().clone()
        self._count = None if seen else buffer._version

    @torch.no_grad()
    def restore(self) -> None:
        exchanged = self._buffer.data_ptr() != self._data.data_ptr()
        if exchanged:
            self._buffer.data = self._data
        if exchanged or self._buffer._version != self._count:
            self._buffer.copy_(self._numbers)
