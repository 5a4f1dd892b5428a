"""What a network calls, in order, found by torch.fx without looking into its blocks.

Only the modules that are to be cut inside are entered. All others are called as wholes, so what they do may depend on
data, on the training mode and on random numbers, as in a network that is not cut.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn


class UntraceableError(Exception):
    """torch.fx cannot follow a forward: that of the module `name`, or of the network itself if that is empty."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(str(error))
        self.name, self.error = name, error


@dataclass(frozen=True)
class Trace:
    """One forward, in one mode."""

    nodes: list[fx.Node]
    """The input, then calls of modules, functions and methods in order, and the output. Parameters that are read are
    not among them: they are there at any time."""
    calls: list[tuple[str, int]]
    """Every module that is called, those that are entered too, with the index of its first node."""
    constants: dict[str, Tensor]
    """Tensors that the forward makes without its input, by the names that nodes know them by."""

    def start(self, name: str) -> int:
        """The index of the first node of a module that is called once. Raises KeyError for any other."""
        if self.count(name) != 1:
            raise KeyError(name)
        return dict(self.calls)[name]

    def count(self, name: str) -> int:
        """How often a module is called."""
        return Counter(called for called, _ in self.calls)[name]

    def crossing(self, index: int) -> list[fx.Node]:
        """The values that are known before the node of this index, and read by it or after it, the newest first: that
        is what a chain of layers goes on with, while others wait for later."""
        behind = set(self.nodes[index:])
        return [node for node in reversed(self.nodes[:index]) if not behind.isdisjoint(node.users)]


def trace(module: nn.Module, entered: Collection[str], *, training: bool) -> Trace:
    """The calls of a network that is given one input, with these of its modules entered.

    Raises UntraceableError.
    """
    tracer, before = _Tracer(entered), set(vars(module))
    try:
        with in_mode(module, training=training):
            graph = tracer.trace(module, _defaults(module))
    except Exception as error:
        raise UntraceableError(tracer.failed, error) from error
    finally:  # torch.fx leaves constants on the module that it traces
        constants = {name: vars(module).pop(name) for name in set(vars(module)) - before}
    kept = _computing(graph)
    position = {node: k for k, node in enumerate(kept)}
    every = list(graph.nodes)
    calls = []
    for name, count in tracer.calls:
        following = (position[node] for node in every[count:] if node in position)
        calls.append((name, next(following)))
    return Trace(kept, calls, constants)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """In training or evaluation mode within; afterwards every module is in the mode in which it was, one by one."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


class _Tracer(fx.Tracer):
    """Enters some modules, and counts the nodes before each call."""

    proxy_buffer_attributes = True  # or what is computed from buffers alone would be taken for a constant

    def __init__(self, entered: Collection[str]) -> None:
        super().__init__()
        self._entered = entered
        self.calls: list[tuple[str, int]] = []
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._entered

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.submodule_paths is None or m not in self.submodule_paths:
            return forward(*args, **kwargs)  # made by the forward that calls it, so it has no name
        name = self.path_of_module(m)
        self.calls.append((name, len(self.graph.nodes)))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or name
            raise


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Of the inputs besides the first one: they are left alone."""
    _, *others = inspect.signature(module.forward).parameters.values()
    named = [p for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if required := [p.name for p in named if p.default is p.empty]:
        raise TypeError(f"its forward takes several inputs, {', '.join(required)} besides the first one")
    return {p.name: p.default for p in named}


def _computing(graph: fx.Graph) -> list[fx.Node]:
    """Without parameters that are read, and without inputs that are left alone, of which nodes remain that check their
    values."""
    dropped = {node for node in graph.nodes if node.op == "placeholder"} - {next(iter(graph.nodes))}
    for node in graph.nodes:
        if not dropped.isdisjoint(node.all_input_nodes):
            dropped.add(node)
    return [node for node in graph.nodes if node.op != "get_attr" and node not in dropped]
