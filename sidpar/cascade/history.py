"""Whether what a module returns depends on what it was given before: running statistics, counters, queues, codebooks.

Found by trying, so it works for modules of any type. A module that only remembers its last activations, for inspection,
has no history.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from sidpar.cascade.module_state import ModuleState, undone
from sidpar.cascade.snapshots import close

TOLERANCE = 1e-5
"""By how much kept values may differ, relative to the largest one: sums on a GPU are added in any order."""
ROUNDING = 1e-3
"""By how much the results of two equal forwards may differ in fp32, relative to the largest value."""
ROUNDING_BF16 = 0.05


@dataclass(frozen=True)
class History:
    """What a forward does to a module."""

    result: tuple[Tensor, ...]
    """What it returns."""
    written: list[str]
    """The names of what it changes, in place or by assignment."""
    made: list[str]
    """The names of parameters that it creates."""
    kept: list[str]
    """The names of what depends on earlier forwards. What hooks keep for themselves is not among them."""
    depends_on_unseen: bool
    """Whether the same input gives another result the next time, although everything that the module holds is
    restored."""


def history(
    module: nn.Module,
    forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    rounding: float = ROUNDING,
) -> History:
    """Compare forwards with and without another forward before them. Their effects on the module are undone.

    Args:
        forward: runs `module` on tensors [b, ...], with the same random numbers each time.
        tensors: [b, ...].
        rounding: of the results, relative to the largest number.
    """
    kept = dict[str, None]()
    parameters = {name for name, _ in module.named_parameters()}
    with undone(module, parameters=True) as before:
        result = forward(tensors)
        written, made = before.changed(), [name for name, _ in module.named_parameters() if name not in parameters]
        parameters &= set(written)
        for row in range(min(2, len(tensors[0]))):  # a maximum of all rows is that of one row, but not of two
            alone = tuple(tensor[[row] * len(tensor)] for tensor in tensors)
            before.restore()
            expected = forward(alone)
            after = ModuleState(module, parameters=bool(parameters))
            before.restore()
            forward(tensors)
            found = forward(alone)
            # What holds the last forward only ends as it did, but the result has come of another one.
            alike = all(map(partial(close, tolerance=rounding), found, expected))
            kept |= dict.fromkeys(after.changed(TOLERANCE) if alike else [*after.changed(TOLERANCE), *written])
        repeated = []
        for _ in range(2):
            before.restore()
            repeated.append(forward(tensors))
    repeats = (close(*pair, rounding) for again in repeated for pair in zip(again, result, strict=True))
    return History(result, written, made, [name for name in kept if not name.endswith("_hooks")], not all(repeats))
