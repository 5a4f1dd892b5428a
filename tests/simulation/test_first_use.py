"""Whether a host that waits for its whole device, as it may at the first use of a kernel, can stop ranks for ever."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.phases import WORK
from sidpar.schedules.placement import even_split
from sidpar.schedules.receives import when_needed
from sidpar.simulation.first_use import Loads, check_loads
from sidpar.simulation.simulator import DeadlockError
from tests.schedules.setups import SYNCHRONOUS, Lists, Setup

ALL = ("first uses", "any", "late, first uses", "late, any", "late, optimizer")
UPDATES = {Do.UPDATE_REFINERS, Do.UPDATE_EXTRACTOR}


def setups(schedule: str, extractor: str) -> Iterator[Setup]:
    """Up to six ranks; 80 of each synchronous schedule, and 240 streams of six batches."""
    for ranks, microbatches, passes_states in product(range(2, 7), range(1, 9), (True, False)):
        for staleness in (1, 2, 3) if schedule == "streaming" else (1,):
            counts = (1,) * ranks
            yield Setup(schedule, counts, microbatches, extractor, True, passes_states, "loop", staleness, 6)


def late(lists: Lists, *, shares_statistics: bool = False) -> Lists:
    senders = [(), *lists[:-1]] if shares_statistics else [()] * len(lists)
    return [list(when_needed(mine, sender)) for mine, sender in zip(lists, senders, strict=True)]


def rows_of(microbatches: int) -> list[int]:
    """Of batches that are cut evenly, and with one larger or one smaller microbatch."""
    return [microbatches, microbatches + 1, 2 * microbatches - 1]


def first_uses(lists: Lists, microbatches: int, rows: int) -> set[tuple[int, Action]]:
    """Each rank's first work of a kind, with microbatches of one size."""
    sizes = even_split(rows, microbatches)
    found: dict[tuple[object, ...], tuple[int, Action]] = {}
    for rank, mine in enumerate(lists):
        for action in mine:
            size = None if action.microbatch is None else sizes[action.microbatch]
            if action.do in WORK:
                found.setdefault((rank, action.do, action.refiner, action.graph, size), (rank, action))
    return set(found.values())


def ends_with(lists: Lists, loads: Loads, shares_statistics: bool) -> bool:
    try:
        check_loads(lists, loads, shares_statistics=shares_statistics)
    except DeadlockError:
        return False
    return True


def circles(schedule: str, extractor: str, shares_statistics: bool) -> dict[str, int]:
    """How many setups some first use stops for ever, and how many a wait at any action does; the same with receives
    posted late, and what is left of these if all has been used before but for the optimizer."""
    ends = partial(ends_with, shares_statistics=shares_statistics)
    counts = dict.fromkeys(ALL, 0)
    for setup in setups(schedule, extractor):
        ahead = setup.lists()
        for prefix, lists in (("", ahead), ("late, ", late(ahead, shares_statistics=shares_statistics))):
            firsts = [first_uses(lists, setup.microbatches, rows) for rows in rows_of(setup.microbatches)]
            counts[f"{prefix}first uses"] += not all(ends(lists, are_in(uses)) for uses in firsts)
            counts[f"{prefix}any"] += not ends(lists, lambda *_: True)
        counts["late, optimizer"] += not ends(lists, lambda _, action: action.do in UPDATES)
    return counts


def are_in(uses: set[tuple[int, Action]]) -> Loads:
    return lambda rank, action: (rank, action) in uses


FOUND = {
    ("fused", "sharded"): {"first uses": 35, "any": 35},
    ("fused", "root"): {"first uses": 35, "any": 35},
    ("streaming", "sharded"): {
        "first uses": 120,
        "any": 120,
        "late, first uses": 120,
        "late, any": 120,
        "late, optimizer": 6,
    },
    ("streaming", "root"): {"first uses": 240, "any": 240, "late, first uses": 240, "late, any": 240},
    ("streaming", "replicated"): {"first uses": 120, "any": 120},
}
"""Of 80 setups, of a stream of 240; half of them have a chain of states. Where nothing is said, there are none."""


SHARED = FOUND[("streaming", "sharded")] | {"late, optimizer": 120}
"""The same of streams whose batch norms in the extractor share their statistics."""


@pytest.mark.parametrize(
    ("extractor", "shares_statistics"), [("sharded", False), ("root", False), ("replicated", False), ("sharded", True)]
)
@pytest.mark.parametrize("schedule", [*SYNCHRONOUS, "streaming"])
def test_circles(schedule: str, extractor: str, shares_statistics: bool) -> None:
    """With late receives, a step may wait for the device anywhere, and so may a stream with a replicated extractor.
    Other streams need everything to have been used beforehand: the optimizer, too. Where batch norms of a sharded
    extractor share their statistics, a step is as before, and a stream needs the optimizer more often."""
    found = SHARED if shares_statistics and schedule == "streaming" else FOUND.get((schedule, extractor), {})
    assert circles(schedule, extractor, shares_statistics) == dict.fromkeys(ALL, 0) | found


def test_the_smallest_circle() -> None:
    """Two ranks whose second microbatch is smaller than the first: rank 1 has posted the receive of microbatch 1 and
    loads what its backward of microbatch 0 needs; rank 0, which is to send it, has started the scatter of microbatch 0
    and loads what the smaller one needs."""
    lists = Setup("fused", (1, 1), 2, "sharded", True, True, "loop", 1, 1).lists()
    loads = {(1, Action(Do.BACKWARD, 0, 1)), (0, Action(Do.FORWARD, 1, 0, graph=True))}
    with pytest.raises(DeadlockError, match="0: 'forward of refiner 0 of microbatch 1', 1: 'backward of refiner 1"):
        check_loads(lists, are_in(loads))
    for one in loads:
        check_loads(lists, are_in({one}))
    check_loads(late(lists), lambda *_: True)
