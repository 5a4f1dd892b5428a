"""Snapshots of single things that a module keeps: the values of a tensor, a dictionary, a random generator."""

import pickle
import types
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from numbers import Number
from typing import Any

import numpy
import torch
from torch import Tensor

DEPTH = 4
"""How far attributes are followed from a module: into a list of queues, say, but not through a whole program."""
PLAIN = (bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size)
"""Values without parts."""


class Snapshot(ABC):
    """One thing as it was when the snapshot was taken."""

    @abstractmethod
    def changed(self, tolerance: float = 0.0) -> list[str]:
        """The names of what has changed since."""

    @abstractmethod
    def restore(self) -> None: ...


class TensorSnapshot(Snapshot):
    """A tensor's values, which may be changed in place or replaced (`tensor.data = ...`)."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor = name, tensor
        self._data = tensor.data
        self._numbers = tensor.detach().clone()

    def changed(self, tolerance: float = 0.0) -> list[str]:
        same = not self._exchanged and _equal(self._tensor.detach(), self._numbers, tolerance)
        return [] if same else [self._name]

    @property
    def _exchanged(self) -> bool:
        now, before = self._tensor, self._data
        return now.shape != before.shape or now.dtype != before.dtype or now.data_ptr() != before.data_ptr()

    @torch.no_grad()
    def restore(self) -> None:
        if self._exchanged:
            self._tensor.data = self._data
        self._tensor.copy_(self._numbers)


class MappingSnapshot(Snapshot):
    """A dictionary, also that of an object's attributes or a module's buffers: `self.mean = ...` exchanges an entry."""

    def __init__(self, name: Callable[[Any], str], mapping: MutableMapping[Any, Any]) -> None:
        self._name, self._mapping, self._items = name, mapping, dict(mapping)

    def changed(self, tolerance: float = 0.0) -> list[str]:
        keys = [*self._items, *(key for key in self._mapping if key not in self._items)]
        here, there = self._mapping, self._items
        return [
            self._name(key)
            for key in keys
            if not (key in here and key in there and _alike(here[key], there[key], tolerance))
        ]

    def restore(self) -> None:
        if list(self._mapping) != list(self._items):
            self._mapping.clear()
        self._mapping.update(self._items)


class Slots(MutableMapping[str, Any]):
    """The attributes of an object that `__slots__` of its class, or of one above it, declare."""

    def __init__(self, value: object) -> None:
        self.names = _slots(type(value))
        self._value = value

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._value, name)
        except AttributeError as error:  # not assigned yet
            raise KeyError(name) from error

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._value, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._value, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names if hasattr(self._value, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _slots(kind: type) -> tuple[str, ...]:
    declared = [vars(above).get("__slots__", ()) for above in kind.__mro__]
    names = [name for each in declared for name in ((each,) if isinstance(each, str) else each)]
    members = [name if not name.startswith("__") or name.endswith("__") else "" for name in names]
    return tuple(name for name in members if name not in ("", "__dict__", "__weakref__"))


class CollectionSnapshot(Snapshot):
    """A list, deque or set."""

    def __init__(self, name: str, collection: Any) -> None:
        self._name, self._collection, self._items = name, collection, list(collection)

    def changed(self, tolerance: float = 0.0) -> list[str]:
        return [] if _alike(list(self._collection), self._items, tolerance) else [self._name]

    def restore(self) -> None:
        self._collection.clear()
        (self._collection.update if isinstance(self._collection, set) else self._collection.extend)(self._items)


class ArraySnapshot(Snapshot):
    """A NumPy array's numbers."""

    def __init__(self, name: str, array: "numpy.ndarray[Any, Any]") -> None:
        self._name, self._array, self._numbers = name, array, array.copy()

    def changed(self, tolerance: float = 0.0) -> list[str]:
        return [] if self._array.tobytes() == self._numbers.tobytes() else [self._name]

    def restore(self) -> None:
        self._array[...] = self._numbers


class GeneratorSnapshot(Snapshot):
    """A random generator, which gives and takes its state itself."""

    def __init__(self, name: str, give: Callable[[], Any], take: Callable[[Any], Any]) -> None:
        self._name, self._give, self._take, self._state = name, give, take, give()

    def changed(self, tolerance: float = 0.0) -> list[str]:
        now, before = self._give(), self._state
        same = torch.equal(now, before) if isinstance(now, Tensor) else pickle.dumps(now) == pickle.dumps(before)
        return [] if same else [self._name]

    def restore(self) -> None:
        self._take(self._state)


class CellSnapshot(Snapshot):
    """A variable of an enclosing function, which a hook may assign (`nonlocal`)."""

    def __init__(self, name: str, cell: types.CellType) -> None:
        self._name, self._cell = name, cell
        self._value = cell.cell_contents if filled(cell) else None

    def changed(self, tolerance: float = 0.0) -> list[str]:
        same = not filled(self._cell) or _alike(self._cell.cell_contents, self._value, tolerance)
        return [] if same else [self._name]

    def restore(self) -> None:
        self._cell.cell_contents = self._value


def filled(cell: types.CellType) -> bool:
    """A variable that is not assigned yet has an empty cell."""
    return cell != types.CellType()


def _alike(one: Any, other: Any, tolerance: float, depth: int = 0) -> bool:
    """The same object, or one that stands for the same: a forward may assign 1.0 again, or make the same list anew."""
    if one is other:
        return True
    if type(one) is not type(other) or depth > DEPTH:
        return False
    deeper = partial(_alike, tolerance=tolerance, depth=depth + 1)
    match one:
        case Tensor():
            return _equal(one.detach(), other.detach(), tolerance)
        case numpy.ndarray():
            return one.dtype == other.dtype and one.shape == other.shape and bool(one.tobytes() == other.tobytes())
        case dict():
            return list(one) == list(other) and all(map(deeper, one.values(), other.values()))
        case list() | tuple() | deque():
            return len(one) == len(other) and all(map(deeper, one, other))
        case float():
            return bool(one == other or abs(one - other) <= tolerance * abs(other))
        case numpy.floating():
            return bool(one == other or abs(one - other) <= tolerance * abs(other))
        case _ if isinstance(one, (*PLAIN, set, frozenset, numpy.generic, Number)):
            return bool(one == other)
        case _ if hasattr(one, "__dict__"):
            return bool(deeper(vars(one), vars(other)))
    return False


def _equal(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Also where both are not a number."""
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout or one.device != other.device:
        return False
    if one.is_meta:
        return False
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    if torch.equal(one, other):
        return True
    return (one.is_floating_point() or one.is_complex()) and close(one, other, tolerance)


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether numbers differ by at most `tolerance`, relative to the largest one; those that are no number, not."""
    if one.shape != other.shape:
        return False
    if other.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    one, other = one.double(), other.double()
    scale = other.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if other.numel() else 0.0
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
