"""What a module keeps for itself from one forward to the next, so that a forward can be undone."""

import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn

_DEPTH = 4
"""How far attributes are followed from a module: into a list of queues, say, but not through a whole program."""


class ModuleState:
    """A module's buffers and Python attributes at this moment, and what its hooks keep: counters, queues, codebooks.

    Followed are containers, NumPy arrays, random generators, the attributes of plain objects, and what hooks close
    over. Not seen are global variables, files, and what lies deeper than four objects in.

    Args:
        parameters: include them, at the price of a copy.
    """

    def __init__(self, module: nn.Module, *, parameters: bool = False) -> None:
        self._parameters = parameters
        self._kept: list[_Kept] = []
        self._seen: dict[int, object] = {}  # the objects themselves, or an id could be used again
        self._visit(module, "", 0)

    def changed(self, tolerance: float = 0.0) -> list[str]:
        """The names of what is not as it was, `layers.1.running_mean` or `queue`. Numbers may differ by `tolerance`,
        relative to the largest of a tensor."""
        return list(dict.fromkeys(name for kept in self._kept for name in kept.changed(tolerance)))

    def restore(self) -> None:
        """Everything as it was, in the same objects."""
        for kept in self._kept:
            if kept.changed():
                kept.restore()

    def _visit(self, value: Any, name: str, depth: int) -> None:
        if value is None or isinstance(value, _PLAIN) or id(value) in self._seen or depth > _DEPTH:
            return
        self._seen[id(value)] = value
        if isinstance(value, nn.Module):
            self._visit_module(value, name)
        elif isinstance(value, Tensor):
            if (
                value.layout == torch.strided
                and not value.is_meta
                and (self._parameters or not isinstance(value, nn.Parameter))
            ):
                self._kept.append(_KeptTensor(name, value))
        elif isinstance(value, MutableMapping):
            self._kept.append(_KeptMapping(lambda _: name, value))
            self._visit_all(value.values(), name, depth)
        elif isinstance(value, list | deque | set):
            self._kept.append(_KeptCollection(name, value))
            self._visit_all(value, name, depth)
        elif isinstance(value, tuple):
            self._visit_all(value, name, depth)
        elif isinstance(value, numpy.ndarray):
            self._kept.append(_KeptArray(name, value))
        elif isinstance(value, torch.Generator):
            self._kept.append(_KeptGenerator(name, value.get_state, value.set_state))
        elif isinstance(value, random.Random):
            self._kept.append(_KeptGenerator(name, value.getstate, value.setstate))
        elif isinstance(value, numpy.random.Generator):
            bits = value.bit_generator
            self._kept.append(_KeptGenerator(name, lambda: bits.state, partial(setattr, bits, "state")))
        else:
            self._visit_object(value, name, depth)

    def _visit_all(self, values: Iterable[Any], name: str, depth: int) -> None:
        for value in list(values):
            self._visit(value, name, depth + 1)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        attributes, prefix = vars(module), f"{name}." if name else ""
        groups = [attributes[group] for group in ("_buffers", "_parameters", "_modules")]
        for mapping in (attributes, *groups):
            self._kept.append(_KeptMapping(lambda key: f"{prefix}{key}", mapping))
            for key, value in list(mapping.items()):
                if key != "_compiled_call_impl" and all(value is not group for group in groups):
                    self._visit(value, f"{prefix}{key}", 1)

    def _visit_object(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, partial):
            self._visit((value.func, value.args, value.keywords), name, depth)
        elif isinstance(value, types.MethodType):
            self._visit((value.__self__, value.__func__), name, depth)
        elif isinstance(value, types.FunctionType):
            self._visit((value.__defaults__, value.__kwdefaults__, value.__closure__), name, depth)
        elif isinstance(value, types.CellType):
            self._kept.append(_KeptCell(name, value))
            if _filled(value):
                self._visit(value.cell_contents, name, depth)
        elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
            self._visit(vars(value), name, depth)


@contextmanager
def undone(module: nn.Module, *, parameters: bool = False) -> Iterator[ModuleState]:
    """What forwards within do to the module's state is undone at the end."""
    state = ModuleState(module, parameters=parameters)
    try:
        yield state
    finally:
        state.restore()


_PLAIN = (bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size)


class _Kept:
    """One thing as it was."""

    def changed(self, tolerance: float = 0.0) -> list[str]:
        """The names of what is otherwise now."""
        raise NotImplementedError

    def restore(self) -> None:
        raise NotImplementedError


class _KeptTensor(_Kept):
    """Numbers, which are written into or exchanged (`tensor.data = ...`)."""

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


class _KeptMapping(_Kept):
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


class _KeptCollection(_Kept):
    """A list, deque or set."""

    def __init__(self, name: str, collection: Any) -> None:
        self._name, self._collection, self._items = name, collection, list(collection)

    def changed(self, tolerance: float = 0.0) -> list[str]:
        return [] if _alike(list(self._collection), self._items, tolerance) else [self._name]

    def restore(self) -> None:
        self._collection.clear()
        (self._collection.update if isinstance(self._collection, set) else self._collection.extend)(self._items)


class _KeptArray(_Kept):
    """A NumPy array's numbers."""

    def __init__(self, name: str, array: "numpy.ndarray[Any, Any]") -> None:
        self._name, self._array, self._numbers = name, array, array.copy()

    def changed(self, tolerance: float = 0.0) -> list[str]:
        return [] if self._array.tobytes() == self._numbers.tobytes() else [self._name]

    def restore(self) -> None:
        self._array[...] = self._numbers


class _KeptGenerator(_Kept):
    """A random generator, which gives and takes its state itself."""

    def __init__(self, name: str, give: Callable[[], Any], take: Callable[[Any], Any]) -> None:
        self._name, self._give, self._take, self._state = name, give, take, give()

    def changed(self, tolerance: float = 0.0) -> list[str]:
        now, before = self._give(), self._state
        same = torch.equal(now, before) if isinstance(now, Tensor) else str(now) == str(before)
        return [] if same else [self._name]

    def restore(self) -> None:
        self._take(self._state)


class _KeptCell(_Kept):
    """A variable of an enclosing function, which a hook may assign (`nonlocal`)."""

    def __init__(self, name: str, cell: types.CellType) -> None:
        self._name, self._cell = name, cell
        self._value = cell.cell_contents if _filled(cell) else None

    def changed(self, tolerance: float = 0.0) -> list[str]:
        same = not _filled(self._cell) or _alike(self._cell.cell_contents, self._value, tolerance)
        return [] if same else [self._name]

    def restore(self) -> None:
        self._cell.cell_contents = self._value


def _filled(cell: types.CellType) -> bool:
    """A variable that is not assigned yet has an empty cell."""
    return cell != types.CellType()


def _alike(one: Any, other: Any, tolerance: float, depth: int = 0) -> bool:
    """The same object, or one that stands for the same: a forward may assign 1.0 again, or make the same list anew."""
    if one is other:
        return True
    if type(one) is not type(other) or depth > _DEPTH:
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
        case _ if isinstance(one, (*_PLAIN, set)):
            return bool(one == other)
        case _ if hasattr(one, "__dict__"):
            return bool(deeper(vars(one), vars(other)))
    return False


def _equal(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Also where both are not a number."""
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout or one.device != other.device:
        return False
    if one.layout != torch.strided or one.is_meta:
        return False
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
