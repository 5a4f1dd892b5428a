"""Whether what a module returns depends on what it was given before: running statistics, counters, queues, codebooks.

Found by trying, so it also sees what no list of module types would. A module that only remembers its last activations
for somebody to look at has no history.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from sidpar.cascade.module_state import ModuleState, undone
from sidpar.cascade.snapshots import close

TOLERANCE = 1e-5
"""Of results and of what is kept, relative to the largest number: sums on a GPU come in any order."""


@dataclass(frozen=True)
class History:
    """What a forward does to a module."""

    result: tuple[Tensor, ...]
    """What it returns."""
    written: list[str]
    """The names of what it writes into, or exchanges."""
    kept: list[str]
    """Those that depend on the forwards before. What a hook keeps for itself is not among them: it looks on."""


def history(
    module: nn.Module, forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], tensors: tuple[Tensor, ...]
) -> History:
    """Compare forwards with and without another one before them; what they do to the module is undone.

    Args:
        forward: runs `module` on tensors [b, ...], with the same random numbers each time.
        tensors: [b, ...].
    """
    others = tuple(tensor[[0, *range(len(tensor) - 1)]] for tensor in tensors)
    with undone(module, parameters=True) as before:
        result = forward(tensors)
        written = before.changed()
        parameters = {name for name, _ in module.named_parameters()}
        after = ModuleState(module, parameters=not parameters.isdisjoint(written))
        before.restore()
        forward(others)
        again = forward(tensors)
        kept = [name for name in after.changed(TOLERANCE) if not name.endswith("_hooks")]
        if not kept and not all(close(one, other, TOLERANCE) for one, other in zip(again, result, strict=True)):
            kept = ["something"]
    return History(result, written, kept)
