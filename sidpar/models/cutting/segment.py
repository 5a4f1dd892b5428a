"""A run of a network's calls as a module of its own, between two cuts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from sidpar.cascade.cascade import TensorTuple, unwrap
from sidpar.errors import UsageError
from sidpar.models.cutting.tracing import Trace


class Slot(NamedTuple):
    """A place for a value, in the arguments of a step."""

    number: int


class Step(NamedTuple):
    """One call."""

    kind: str
    """As torch.fx names it: call_module, call_function, call_method, get_attr."""
    target: Any
    args: Any
    kwargs: Any
    result: int
    last_reads: tuple[int, ...]
    """The values that nobody reads after it."""


class Program(NamedTuple):
    """What a segment executes in one mode."""

    num_inputs: int
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


class Segment(nn.Module):
    """The calls between two cuts. Modules and parameters keep the names that they have in the network.

    Takes the tensors that cross the cut before it, and returns those that cross the one after it.
    """

    def __init__(self, network: nn.Module, traces: Mapping[bool, Trace], cuts: Mapping[bool, tuple[int, int]]) -> None:
        """`traces[training]` is the network's, `cuts[training]` the indices of the first node and of that after the
        last one."""
        super().__init__()
        self._programs = {training: _program(trace, *cuts[training]) for training, trace in traces.items()}
        steps = [step for program in self._programs.values() for step in program.steps]
        called = list(dict.fromkeys(step.target for step in steps if step.kind == "call_module"))
        for name in called:
            if not any(name.startswith(f"{other}.") for other in called):  # which has it
                self._container(name).add_module(_last(name), network.get_submodule(name))
        for name in dict.fromkeys(step.target for step in steps if step.kind == "get_attr"):
            if _find(self, name) is None:  # else a module has it
                self._adopt(network, name, traces)
        for part in self.modules():
            if type(part) is nn.Module:
                part.training = network.training
        self.training = network.training
        self.lifts_tokens = False
        """Whether tokens [B, T, D] are returned as [B, 1, T, D]: of features [B, T, D], a cascade forms T beliefs."""

    @property
    def depends_on_mode(self) -> bool:
        """Whether other calls are made in training than in evaluation, besides what the modules that are called do."""
        return self._programs[True] != self._programs[False]

    def forward(self, *given: Tensor) -> Tensor | TensorTuple:
        program = self._programs[self.training]
        values: dict[int, Any] = dict(enumerate(given))
        for step in program.steps:
            values[step.result] = self._execute(step, values)
            for slot in step.last_reads:
                del values[slot]
        first, *others = (values[slot] for slot in program.outputs)
        return unwrap((first.unsqueeze(1) if self.lifts_tokens else first, *others))

    def _execute(self, step: Step, values: Mapping[int, Any]) -> Any:
        args, kwargs = _filled(step.args, values), _filled(step.kwargs, values)
        if step.kind == "call_module":
            return self.get_submodule(step.target)(*args, **kwargs)
        if step.kind == "call_function":
            return step.target(*args, **kwargs)
        if step.kind == "call_method":
            return getattr(args[0], step.target)(*args[1:], **kwargs)
        return _find(self, step.target)

    def _container(self, name: str) -> nn.Module:
        """The module that is to hold what has this name, made if need be."""
        owner: nn.Module = self
        for part in name.split(".")[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        return owner

    def _adopt(self, network: nn.Module, name: str, traces: Mapping[bool, Trace]) -> None:
        """A parameter, a buffer or a constant that is read directly."""
        value = _find(network, name)
        if value is None:
            value = next(trace.constants[name] for trace in traces.values() if name in trace.constants)
        owner = self._container(name)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(_last(name), value)
        else:
            owner.register_buffer(_last(name), value, persistent=name in network.state_dict())


def _program(trace: Trace, start: int, end: int) -> Program:
    """The nodes from `start` to `end`, as steps."""
    inputs = trace.crossing(start) if start else trace.nodes[:1]
    nodes = [node for node in trace.nodes[start:end] if node.op not in ("placeholder", "output")]
    outputs = trace.crossing(end) if end < len(trace.nodes) else _results(trace)
    slots = {node: k for k, node in enumerate(inputs)}
    read: list[fx.Node] = []  # parameters, before the first node that reads them
    for node in nodes:
        for argument in node.all_input_nodes:
            if argument.op == "get_attr" and argument not in slots:
                read.append(argument)
                slots[argument] = len(slots)
        read.append(node)
        slots[node] = len(slots)
    results = {slots[node] for node in outputs}
    last = {slots[argument]: k for k, node in enumerate(read) for argument in (node, *node.all_input_nodes)}
    steps = [
        Step(
            node.op,
            node.target,
            _with_slots(node.args, slots),
            _with_slots(node.kwargs, slots),
            slots[node],
            tuple(slot for slot, reader in last.items() if reader == k and slot not in results),
        )
        for k, node in enumerate(read)
    ]
    return Program(len(inputs), tuple(steps), tuple(slots[node] for node in outputs))


def _results(trace: Trace) -> list[fx.Node]:
    """What the network returns, if that is one value."""
    returned = trace.nodes[-1].args[0]
    if not isinstance(returned, fx.Node):
        raise UsageError(
            f"the network returns a {type(returned).__name__}, but a cascade is cut from one that returns logits "
            "[B, C] alone: wrap it in a module that does, or switch off what it returns besides"
        )
    return [returned]


def _with_slots(argument: Any, slots: Mapping[fx.Node, int]) -> Any:
    """With a slot in place of each node, and plain containers in place of torch.fx's."""
    match argument:
        case fx.Node():
            return Slot(slots[argument])
        case dict():
            return {key: _with_slots(value, slots) for key, value in argument.items()}
        case slice():
            return slice(*(_with_slots(end, slots) for end in (argument.start, argument.stop, argument.step)))
        case list():
            return [_with_slots(value, slots) for value in argument]
        case tuple():
            return tuple(_with_slots(value, slots) for value in argument)
    return argument


def _filled(argument: Any, values: Mapping[int, Any]) -> Any:
    """With the values in place of the slots."""
    match argument:
        case Slot():
            return values[argument.number]
        case dict():
            return {key: _filled(value, values) for key, value in argument.items()}
        case slice():
            return slice(*(_filled(end, values) for end in (argument.start, argument.stop, argument.step)))
        case list():
            return [_filled(value, values) for value in argument]
        case tuple():
            return tuple(_filled(value, values) for value in argument)
    return argument


def _find(module: nn.Module, name: str) -> Any:
    """What has this dotted name in a module; None if nothing has."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _last(name: str) -> str:
    return name.rpartition(".")[2]
