"""Which refiners can be stacked, that is, run at once: found by comparing their structure, and by trying.

Stacked refiners run the code of the first one, with the parameters and buffers of each.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sidpar.cascade.cascade import TensorTuple, refine
from sidpar.cascade.history import history
from sidpar.cascade.inputs import Inputs
from sidpar.cascade.snapshots import close
from sidpar.errors import UsageError

REMEDY = "use parallel.refiner_execution=loop"
PROBE_ROWS = 32


def check_structure(refiners: Sequence[nn.Module], first: int) -> None:
    """Raise UsageError naming the first refiner whose structure differs from that of refiner `first`, or that shares a
    parameter or buffer with another one."""
    expected = _structure(refiners[0])
    owners: dict[int, int] = {}
    for i, refiner in enumerate(refiners, first):
        found = _structure(refiner)
        for key in expected | found:
            one, other = expected.get(key, "missing"), found.get(key, "missing")
            if one != other:
                raise UsageError(
                    f"refiner {i} differs from refiner {first}, and only refiners of equal structure can be stacked: "
                    f"{key} is {other} instead of {one}; {REMEDY}, or make them equal"
                )
        for name, tensor in [*refiner.named_parameters(), *refiner.named_buffers()]:
            owner = owners.setdefault(id(tensor), i)
            if owner != i:
                raise UsageError(
                    f"refiner {i} shares {name} with refiner {owner}, but stacked refiners need parameters and buffers "
                    f"of their own; {REMEDY}, or give it a copy"
                )


def check_states(states: Sequence[TensorTuple], first: int) -> None:
    """Raise UsageError naming the first refiner whose state has other shapes than that of refiner `first`."""
    expected = [tensor.shape for tensor in states[0]]
    for i, state in enumerate(states, first):
        found = [tensor.shape for tensor in state]
        if found != expected:
            raise UsageError(
                f"refiner {i} receives a state of shapes {[list(shape) for shape in found]}, refiner {first} one of "
                f"{[list(shape) for shape in expected]}, and only refiners that receive equal shapes can be stacked; "
                f"{REMEDY}, or stack only those that do"
            )


@torch.no_grad()
def check_results(
    refiners: Sequence[nn.Module],
    at_once: Callable[[TensorTuple, Sequence[TensorTuple]], TensorTuple],
    features: TensorTuple,
    states: Sequence[TensorTuple],
    first: int,
) -> None:
    """Raise UsageError naming the first refiner that, on a few rows, gives another result when it is stacked.

    Found by trying, so it works for modules of any type: functional dropout, a user's own layers, code that vmap does
    not support.

    Args:
        at_once: maps features [b, ...] and n states [b, ...] to n stacked states [n, b, ...].
    """
    features = tuple(feature[:PROBE_ROWS] for feature in features)
    states = [tuple(tensor[:PROBE_ROWS] for tensor in state) for state in states]
    with torch.autocast(features[0].device.type, enabled=False):  # so that rounding stays below the tolerance
        one_by_one = [
            _alone(i, refiner, features, state)
            for i, (refiner, state) in enumerate(zip(refiners, states, strict=True), first)
        ]
        try:
            stacked = at_once(features, states)
        except Exception as error:
            raise UsageError(f"refiner {first} and those like it cannot be stacked ({error}); {REMEDY}") from error
    for k, alone in enumerate(one_by_one):
        if not all(_close(one, tensor[k]) for one, tensor in zip(alone, stacked, strict=True)):
            raise UsageError(
                f"refiner {first + k} gives another result when it is stacked, because stacked refiners run the code "
                f"of refiner {first} with the parameters and buffers of each; {REMEDY}"
            )


def _alone(i: int, refiner: nn.Module, features: TensorTuple, state: TensorTuple) -> TensorTuple:
    """The state that refiner i returns by itself. Raises UsageError if it differs the second time, or if the refiner
    writes into its inputs or buffers."""
    count, inputs = len(features), Inputs()
    forward = inputs.of(f"refiner {i}", refiner)
    tried = history(refiner, lambda given: refine(forward, given[:count], given[count:]), (*features, *state))
    buffers = {name for name, _ in refiner.named_buffers()}
    written = [name for name in tried.written if name in buffers or name in tried.kept]
    if inputs.written_by(refiner):
        raise UsageError(
            f"refiner {i} writes into its inputs, which stacked refiners must not; {REMEDY}, or let its forward "
            "clone() its inputs before it writes"
        )
    if written:
        raise UsageError(
            f"refiner {i} writes buffers in its forward ({', '.join(written)}{_culprits(refiner, _NormBase)}), which "
            f"stacked refiners must not; {REMEDY}, or layers without running statistics, such as GroupNorm"
        )
    following, again = (refine(forward, features, state) for _ in range(2))
    if not all(map(_close, following, again)):
        raise UsageError(
            f"refiner {i} draws random numbers in its forward{_culprits(refiner, _DropoutNd)}, and stacked "
            f"refiners would draw other numbers; {REMEDY}, or refiners without dropout"
        )
    return following


def _structure(refiner: nn.Module) -> dict[str, object]:
    """What must be equal in stacked refiners: parameters and buffers except their values, modules and their plain
    attributes."""
    found: dict[str, object] = {}
    names: dict[int, str] = {}
    tensors = [*refiner.named_parameters(remove_duplicate=False), *refiner.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        tied = names.setdefault(id(tensor), name)
        same = "" if tied == name else f", the same as {tied}"
        trained = "trained" if tensor.requires_grad else "not trained"
        found[name] = f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}, {trained}{same}"
    for path, module in refiner.named_modules():
        found[f"the type of {path or 'the refiner'}"] = f"{type(module).__module__}.{type(module).__qualname__}"
        for attribute, value in vars(module).items():
            if value is None or isinstance(value, bool | int | float | str):
                found[f"{path}.{attribute}" if path else attribute] = value
    return found


def _culprits(refiner: nn.Module, kind: type[nn.Module]) -> str:
    """The layers of that kind, for a message."""
    layers = {name: module for name, module in refiner.named_modules() if isinstance(module, kind)}
    return "".join(f", {name} ({type(module).__name__})" for name, module in layers.items())


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding."""
    return close(one, other, 1e-3)
