"""Where a network can be cut: before a module, where one tensor alone is known that later calls read."""

from collections.abc import Collection, Sequence
from functools import partial
from itertools import accumulate

from torch import nn

from sidpar.errors import UsageError, reason
from sidpar.models.cutting.tracing import Trace, UntraceableError, trace
from sidpar.schedules.placement import place_by_cost

_FEW = 12
"""Names in a message."""
_LEAST = 0.25
"""Of a fair share of the cost, which the last refiner has at least where there is a choice."""


class Points:
    """The points of a network, and the traces that they are found in.

    Modules are entered as long as they can be cut between any two of their own calls; of a class of which one module
    cannot, a residual block for one, none is entered, unless a point lies in it.

    Args:
        wanted: names of modules that are entered as far as need be for a cut before them.

    Raises UsageError if the network, or a module around a wanted point, cannot be traced.
    """

    def __init__(self, network: nn.Module, wanted: Sequence[str] = ()) -> None:
        try:
            self._chains = _chains(network)
            entered = self._chains | {name for point in wanted for name in _around(point)}
            self.traces = {training: trace(network, entered, training=training) for training in (False, True)}
        except UntraceableError as error:
            raise UsageError(_untraceable(network, error, wanted)) from error
        self._network = network
        self.names = self._good()
        """Modules before which the network can be cut, in order. Where several start at one place, the outermost."""

    @property
    def layers(self) -> list[str]:
        """Those that have a matrix or a kernel of weights: a cut before a norm or an activation alone would divide what
        belongs together."""
        parameters = {name: self._network.get_submodule(name).parameters() for name in self.names}
        return [name for name, own in parameters.items() if any(parameter.dim() > 1 for parameter in own)]

    def check(self, point: str, *, carry: bool) -> None:
        """Raises UsageError unless the network can be cut before this module, by more than one tensor if `carry`."""
        if not point or point not in dict(self._network.named_modules()):
            raise UsageError(f"point {point!r} is no module of the network; {self.offer()}")
        for traced in self.traces.values():
            count = traced.count(point)
            if count != 1:
                raise UsageError(
                    f"point {point!r} is called {count} times in a forward, but a cut is made before a module that is "
                    f"called once; {self.offer()}"
                )
            index = traced.start(point)
            if not self._has_layers(traced, index):
                raise UsageError(
                    f"point {point!r} has no layer with weights before it, so the extractor would be empty; "
                    f"{self.offer()}"
                )
            crossing = [node.name for node in traced.crossing(index)]
            if len(crossing) > 1 and not carry:
                raise UsageError(
                    f"a cut before {point!r} divides a connection: {', '.join(crossing)} are all read behind it, and "
                    f"one tensor travels from refiner to refiner; {self._nearest(index)}, or let all of them travel, "
                    "detached, with carry=true"
                )

    def offer(self) -> str:
        """The points there are, for a message."""
        shown = ", ".join(self.names[:_FEW]) + (", ..." if len(self.names) > _FEW else "")
        return f"it can be cut before {shown}" if self.names else "it can be cut nowhere"

    def _good(self) -> list[str]:
        """By both traces. The first name that is called at a place is the outermost."""
        found: dict[int, str] = {}
        traced, other = self.traces[False], self.traces[True]
        for name, index in traced.calls:
            if traced.count(name) == other.count(name) == 1 and self._has_layers(traced, index):
                single = len(traced.crossing(index)) == len(other.crossing(other.start(name))) == 1
                if single and not self._is_deep(name):
                    found.setdefault(index, name)
        return [found[index] for index in sorted(found)]

    def _is_deep(self, name: str) -> bool:
        """Whether it lies in a module that is entered for a wanted point alone."""
        called = {name for name, _ in self.traces[False].calls}
        return not called.intersection(_around(name)) <= self._chains

    def _nearest(self, index: int) -> str:
        if not self.names:
            return "there is no point that would do"
        nearest = min(self.names, key=lambda name: abs(self.traces[False].start(name) - index))
        return f"the nearest point that does is {nearest!r}"

    def _has_layers(self, traced: Trace, index: int) -> bool:
        """Whether some module with parameters is called before this node."""
        before = [node.target for node in traced.nodes[:index] if node.op == "call_module"]
        return any(True for name in before for _ in self._network.get_submodule(str(name)).parameters())


def balanced(costs: Sequence[float], num_refiners: int, share: float | None) -> list[int]:
    """At which of n points to cut a network into an extractor and L refiners of like cost.

    Args:
        costs: n + 1 numbers: of what lies before the first point, between two, and behind the last one.
        num_refiners: L, from 1 to n.
        share: of the cost that the extractor is to have, in (0, 1); by default 1/(L + 1).
    """
    wish = (1 / (num_refiners + 1) if share is None else share) * sum(costs)
    costs, fair = list(costs), (sum(costs) - wish) / num_refiners
    while len(costs) - 1 > num_refiners and costs[-1] < _LEAST * fair:  # a classifier alone makes no refiner
        costs[-2:] = [costs[-2] + costs[-1]]
    ends = list(accumulate(costs))
    last = len(costs) - 1 - num_refiners
    first = min(range(last + 1), key=lambda k: abs(ends[k] - wish))
    counts = place_by_cost(costs[first + 1 :], num_refiners)
    return [first + before for before in accumulate(counts[:-1], initial=0)]


def _around(name: str) -> list[str]:
    """The names of all modules that it lies in, but for the network."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def _chains(network: nn.Module) -> set[str]:
    """The modules that can be cut between any two of their calls, within each other from the outermost."""
    entered: set[str] = set()
    closed: set[str] = set()
    blocks: set[type[nn.Module]] = set()
    while True:
        shallow = trace(network, entered, training=False)
        leaves = [str(node.target) for node in shallow.nodes if node.op == "call_module"]
        inner = [
            name
            for name in leaves
            if shallow.count(name) == 1 and name not in closed and type(network.get_submodule(name)) not in blocks
            if list(network.get_submodule(name).children())
        ]
        if not inner:
            return entered
        try:
            deep = trace(network, entered | set(inner), training=False)
            divided = [name for name in inner if not _is_chain(deep, name)]
        except UntraceableError as error:
            if error.name not in inner:
                raise
            divided = inner = [error.name]
        closed |= set(divided)
        blocks |= {type(network.get_submodule(name)) for name in map(partial(_divider, network), divided) if name}
        entered |= set(inner) - set(divided)
        entered = {name for name in entered if type(network.get_submodule(name)) not in blocks}


def _divider(network: nn.Module, name: str) -> str:
    """The module whose connection goes past a divided one, the network if it is empty: a Sequential has none itself."""
    while name and type(network.get_submodule(name)).forward is nn.Sequential.forward:
        name = name.rpartition(".")[0]
    return name


def _is_chain(traced: Trace, name: str) -> bool:
    """Whether a module calls others, and between any two of its calls one value alone is read later."""
    within = [index for called, index in traced.calls if called.startswith(f"{name}.")]
    return bool(within) and all(len(traced.crossing(index)) == 1 for index in within if index > traced.start(name))


def _untraceable(network: nn.Module, error: UntraceableError, wanted: Collection[str]) -> str:
    where = f"{error.name} ({type(network.get_submodule(error.name)).__name__})" if error.name else "the network"
    inside = [point for point in wanted if error.name and error.name in _around(point)]
    remedy = (
        f"choose a point outside of it in place of {inside[0]!r}"
        if inside
        else "move what looks at data into a module of its own, or build a sidpar.Cascade of its parts yourself"
    )
    return f"{where} cannot be traced by torch.fx, so it cannot be cut inside ({reason(error.error)}): {remedy}"
