"""Which refiners can run at once: found by comparing their structure, and by trying.

Run at once, it is the code of the first refiner that runs, with the parameters and buffers of each.
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
    """Raise UsageError naming the first refiner that differs from the first one in more than numbers, or that shares
    some with another. `first` is that one's number in the cascade."""
    expected = _structure(refiners[0])
    owners: dict[int, int] = {}
    for i, refiner in enumerate(refiners, first):
        found = _structure(refiner)
        for key in expected | found:
            one, other = expected.get(key, "missing"), found.get(key, "missing")
            if one != other:
                raise UsageError(
                    f"refiner {i} differs from refiner {first}, and only refiners of equal structure run at once: "
                    f"{key} is {other} instead of {one}; {REMEDY}, or make them equal"
                )
        for name, tensor in [*refiner.named_parameters(), *refiner.named_buffers()]:
            owner = owners.setdefault(id(tensor), i)
            if owner != i:
                raise UsageError(
                    f"refiner {i} shares {name} with refiner {owner}, and refiners that run at once have each their "
                    f"own; {REMEDY}, or give it a copy"
                )


def check_states(states: Sequence[TensorTuple], first: int) -> None:
    """Raise UsageError naming the first refiner whose state has other shapes than that of refiner `first`."""
    expected = [tensor.shape for tensor in states[0]]
    for i, state in enumerate(states, first):
        found = [tensor.shape for tensor in state]
        if found != expected:
            raise UsageError(
                f"refiner {i} receives a state of shapes {[list(shape) for shape in found]}, refiner {first} one of "
                f"{[list(shape) for shape in expected]}, and only refiners that receive equal shapes run at once; "
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
    """Raise UsageError naming the first refiner that, on a few rows, does something else at once than one by one.

    Because it tries, it sees what no list of module types would: functional dropout, a user's own layers, code that
    vmap does not take.

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
            raise UsageError(f"refiner {first} and those like it cannot run at once ({error}); {REMEDY}") from error
    for k, alone in enumerate(one_by_one):
        if not all(_close(one, tensor[k]) for one, tensor in zip(alone, stacked, strict=True)):
            raise UsageError(
                f"refiner {first + k} gives another result one by one than at once, where the code of refiner {first} "
                f"runs with the parameters and buffers of each; {REMEDY}"
            )


def _alone(i: int, refiner: nn.Module, features: TensorTuple, state: TensorTuple) -> TensorTuple:
    """The state that refiner i returns on its own, if it returns it twice and writes nothing."""
    count, inputs = len(features), Inputs()
    forward = inputs.of(f"refiner {i}", refiner)
    tried = history(refiner, lambda given: refine(forward, given[:count], given[count:]), (*features, *state))
    buffers = {name for name, _ in refiner.named_buffers()}
    written = [name for name in tried.written if name in buffers or name in tried.kept]
    if inputs.written_by(refiner):
        raise UsageError(
            f"refiner {i} writes into what it is given, which refiners that run at once cannot; {REMEDY}, or let its "
            "forward clone() its inputs before it writes"
        )
    if written:
        raise UsageError(
            f"refiner {i} writes buffers in its forward ({', '.join(written)}{_culprits(refiner, _NormBase)}), which "
            f"refiners that run at once cannot; {REMEDY}, or layers without running statistics, such as GroupNorm"
        )
    following, again = (refine(forward, features, state) for _ in range(2))
    if not all(map(_close, following, again)):
        raise UsageError(
            f"refiner {i} draws random numbers in its forward{_culprits(refiner, _DropoutNd)}, and refiners that run "
            f"at once would draw others than one by one; {REMEDY}, or refiners without dropout"
        )
    return following


def _structure(refiner: nn.Module) -> dict[str, object]:
    """What must be equal: parameters and buffers but for their numbers, then modules and their plain attributes."""
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
