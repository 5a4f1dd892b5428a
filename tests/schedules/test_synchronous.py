"""The schedules against their drawings, their laws, and the rules that keep messages from deadlocking."""

from itertools import product
from typing import Any

import pytest

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.placement import Placement, place_by_count
from sidpar.schedules.synchronous import SCHEDULES, all_ranks, extracts_ahead, inference
from sidpar.simulation.simulator import simulate
from tests.schedules.setups import Durations, Lists

EXTRACTORS = ("replicated", "root", "sharded")


def lists(name: str, placement: Placement, microbatches: int, **declared: Any) -> Lists:
    return all_ranks((SCHEDULES | {"inference": inference})[name], placement, microbatches, **declared)  # type: ignore[index]


@pytest.mark.parametrize(
    ("schedule", "extractor", "ranks", "microbatches", "expected"),
    [
        ("fused", "replicated", 1, 3, False),
        ("fused", "replicated", 2, 3, True),
        ("fused", "replicated", 2, 1, False),
        ("fused", "root", 2, 2, True),
        ("fused", "sharded", 2, 3, False),
        ("two_phase", "replicated", 2, 3, False),
        ("two_phase", "root", 2, 2, True),
    ],
)
def test_which_schedules_extract_ahead(
    schedule: str, extractor: Any, ranks: int, microbatches: int, expected: bool
) -> None:
    placement = Placement((1,) * ranks, extractor)
    assert any(map(extracts_ahead, lists(schedule, placement, microbatches))) is expected


def test_fused_is_drawn_as_in_its_docstring() -> None:
    timeline = simulate(lists("fused", Placement((1, 1, 1), "replicated"), 2), Durations())
    assert timeline.draw() == [
        "F0 B0 B0 F1 B1 B1",
        "   F0 B0 B0 F1 B1 B1",
        "      F0 B0 B0 F1 B1 B1",
    ]


def test_two_phase_is_drawn_as_in_its_docstring() -> None:
    timeline = simulate(lists("two_phase", Placement((1, 1, 1), "replicated"), 2), Durations())
    assert timeline.draw() == [
        "T0 T1 F0 B0 B0 F1 B1 B1",
        "   T0 T1 F0 B0 B0 F1 B1 B1",
        "      T0 T1 F0 B0 B0 F1 B1 B1",
    ]


@pytest.mark.parametrize("schedule", ["fused", "two_phase"])
def test_without_a_chain_all_ranks_begin_at_once(schedule: str) -> None:
    """As drawn; no state is sent, and nobody waits. Features travel as ever."""
    for extractor in EXTRACTORS:
        found = lists(schedule, Placement((1, 1, 1), extractor), 2, passes_states=False)  # type: ignore[arg-type]
        assert simulate(found, Durations()).draw() == ["F0 B0 B0 F1 B1 B1"] * 3
        messages = {a.do for mine in found for a in mine if "state" in a.do.value}
        assert messages == set()


@pytest.mark.parametrize(("ranks", "microbatches"), list(product((1, 2, 4, 8), (1, 2, 8, 32))))
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_fused_obeys_its_law(ranks: int, microbatches: int, extractor: str) -> None:
    """The speed-up is 3K / (3 + (K-1)/M) over one rank, extractor and messages left out."""
    placement = Placement(place_by_count(2 * ranks, ranks), extractor)  # type: ignore[arg-type]
    # Durations in units of one whole batch on one refiner, so that a microbatch takes 1/M of it.
    durations = Durations(forward=1 / microbatches, backward=2 / microbatches)
    measured = simulate(lists("fused", placement, microbatches), durations).makespan
    one_rank = 3 * 2 * ranks
    assert one_rank / measured == pytest.approx(3 * ranks / (3 + (ranks - 1) / microbatches))


def test_replicated_extractor_hides_the_chain() -> None:
    """With an extractor at least as long as a refiner's forward, rank r extracts ahead and nobody waits."""
    placement = Placement((1,) * 6, "replicated")
    timeline = simulate(lists("fused", placement, 8), Durations(extract=1.0, extractor_backward=2.0))
    work = 8 * (1 + 2 + 1 + 2)
    assert timeline.ends == [work] * 6


def test_no_receive_is_posted_before_a_collective_that_its_sender_needs() -> None:
    """On NCCL a pending receive occupies the device; see `_open`."""
    for name, extractor in product(("fused", "two_phase", "inference"), EXTRACTORS):
        for mine in lists(name, Placement((1,) * 3, extractor), 3)[1:]:  # type: ignore[arg-type]
            first = next(k for k, a in enumerate(mine) if a.do is Do.POST_STATE)
            assert not [a for a in mine[first:] if a.do in (Do.START_GATHER, Do.START_BROADCAST, Do.AWAIT_GATHER)]


def test_one_rank_sends_nothing() -> None:
    messages = {Do.SEND_STATE, Do.POST_STATE, Do.AWAIT_STATES_SENT, Do.RELEASE_PARAMETER_GRADIENTS}
    messages |= {Do.START_GATHER, Do.START_BROADCAST, Do.START_SCATTER, Do.START_REDUCE}
    for name, extractor, trains in product(("fused", "two_phase", "inference"), EXTRACTORS, (True, False)):
        (mine,) = lists(name, Placement((3,), extractor), 2, trains_extractor=trains)  # type: ignore[arg-type]
        assert not messages & {action.do for action in mine}


def test_actions_name_themselves() -> None:
    assert str(Action(Do.FORWARD, 1, 3)) == "forward of refiner 3 of microbatch 1"
    assert str(Action(Do.SEND_STATE, 0, peer=2)) == "send the state of microbatch 0 to rank 2"
    assert str(Action(Do.AWAIT_STATE, 0, peer=1)) == "await the state of microbatch 0 from rank 1"
