"""What a module keeps from one forward to the next, so that a forward can be undone."""

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

from sidpar.cascade.snapshots import (
    DEPTH,
    PLAIN,
    ArraySnapshot,
    CellSnapshot,
    CollectionSnapshot,
    GeneratorSnapshot,
    MappingSnapshot,
    Slots,
    Snapshot,
    TensorSnapshot,
    filled,
)


class ModuleState:
    """A module's buffers and Python attributes at this moment, and what its hooks keep: counters, queues, codebooks.

    Containers, NumPy arrays, random generators, attributes of plain objects and the closures of hooks are followed, up
    to four objects deep. Global variables and files are not seen.

    Args:
        module: by default none; `include` adds what is to be kept then.
        parameters: whether to include parameters, which are copied for that.
    """

    def __init__(self, module: nn.Module | None = None, *, parameters: bool = False) -> None:
        self._parameters = parameters
        self._kept: list[Snapshot] = []
        self._seen: dict[int, object] = {}  # the objects themselves, or an id could be used again
        self._visit(module, "", 0)

    def include(self, value: Any, name: str) -> None:
        """An attribute of this name, and what is in it."""
        self._visit(value, name, 1)

    def changed(self, tolerance: float = 0.0) -> list[str]:
        """The names of what is not as it was, `layers.1.running_mean` or `queue`. Numbers may differ by `tolerance`,
        relative to the largest of a tensor."""
        return list(dict.fromkeys(name for kept in self._kept for name in kept.changed(tolerance)))

    def restore(self) -> None:
        """Put everything back as it was, in the same objects."""
        for kept in self._kept:
            if kept.changed():
                kept.restore()

    def _visit(self, value: Any, name: str, depth: int) -> None:
        if value is None or isinstance(value, PLAIN) or id(value) in self._seen or depth > DEPTH:
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
                self._kept.append(TensorSnapshot(name, value))
        elif isinstance(value, MutableMapping):
            self._kept.append(MappingSnapshot(lambda _: name, value))
            self._visit_all(value.values(), name, depth)
        elif isinstance(value, list | deque | set):
            self._kept.append(CollectionSnapshot(name, value))
            self._visit_all(value, name, depth)
        elif isinstance(value, tuple):
            self._visit_all(value, name, depth)
        elif isinstance(value, numpy.ndarray):
            self._kept.append(ArraySnapshot(name, value))
        elif isinstance(value, torch.Generator):
            self._kept.append(GeneratorSnapshot(name, value.get_state, value.set_state))
        elif isinstance(value, random.Random):
            self._kept.append(GeneratorSnapshot(name, value.getstate, value.setstate))
        elif isinstance(value, numpy.random.Generator):
            bits = value.bit_generator
            self._kept.append(GeneratorSnapshot(name, lambda: bits.state, partial(setattr, bits, "state")))
        elif isinstance(value, numpy.random.RandomState):
            self._kept.append(GeneratorSnapshot(name, value.get_state, value.set_state))
        else:
            self._visit_object(value, name, depth)

    def _visit_all(self, values: Iterable[Any], name: str, depth: int) -> None:
        for value in list(values):
            self._visit(value, name, depth + 1)

    def _visit_module(self, module: nn.Module, name: str) -> None:
        attributes, prefix = vars(module), f"{name}." if name else ""
        groups = [attributes[group] for group in ("_buffers", "_parameters", "_modules")]
        for mapping in (attributes, *groups):
            self._kept.append(MappingSnapshot(lambda key: f"{prefix}{key}", mapping))
            for key, value in list(mapping.items()):
                if key != "_compiled_call_impl" and all(value is not group for group in groups):
                    self._visit(value, f"{prefix}{key}", 1)
        self._visit_slots(module, lambda key: f"{prefix}{key}", 0)

    def _visit_object(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, partial):
            self._visit((value.func, value.args, value.keywords), name, depth)
        elif isinstance(value, types.MethodType):
            self._visit((value.__self__, value.__func__), name, depth)
        elif isinstance(value, types.FunctionType):
            self._visit((value.__defaults__, value.__kwdefaults__, value.__closure__), name, depth)
        elif isinstance(value, types.CellType):
            self._kept.append(CellSnapshot(name, value))
            if filled(value):
                self._visit(value.cell_contents, name, depth)
        elif not isinstance(value, type | types.ModuleType):
            self._visit_slots(value, lambda _: name, depth)
            if hasattr(value, "__dict__"):
                self._visit(vars(value), name, depth)

    def _visit_slots(self, value: object, spoken: Callable[[Any], str], depth: int) -> None:
        """Attributes that are declared by `__slots__`, and in no dictionary."""
        slots = Slots(value)
        if slots.names:
            self._kept.append(MappingSnapshot(spoken, slots))
            for key, item in list(slots.items()):
                self._visit(item, spoken(key), depth + 1)


@contextmanager
def undone(module: nn.Module, *, parameters: bool = False) -> Iterator[ModuleState]:
    """Undo at the end what forwards inside have done to the module's state."""
    state = ModuleState(module, parameters=parameters)
    try:
        yield state
    finally:
        state.restore()
