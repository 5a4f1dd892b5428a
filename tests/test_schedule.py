"""The schedules against their drawings, their laws, and the rules that keep messages from deadlocking."""

from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidpar.actions import Action, Do
from sidpar.placement import Placement, place_by_count
from sidpar.rank_view import RankView
from sidpar.schedule import SCHEDULES, all_ranks, fused, inference, two_phase
from sidpar.simulator import DeadlockError, Durations, Lists, simulate

UPDATES = ("all", "final", "frozen")
EXTRACTORS = ("replicated", "root", "sharded")


def lists(name: str, placement: Placement, microbatches: int, update: Any = "all") -> Lists:
    return all_ranks((SCHEDULES | {"inference": inference})[name], placement, microbatches, update)  # type: ignore[index]


def test_fused_is_drawn_as_in_its_docstring() -> None:
    timeline = simulate(lists("fused", Placement((1, 1, 1), "replicated"), 2))
    assert timeline.draw() == [
        "F0 B0 B0 F1 B1 B1",
        "   F0 B0 B0 F1 B1 B1",
        "      F0 B0 B0 F1 B1 B1",
    ]


def test_two_phase_is_drawn_as_in_its_docstring() -> None:
    timeline = simulate(lists("two_phase", Placement((1, 1, 1), "replicated"), 2))
    assert timeline.draw() == [
        "T0 T1 F0 B0 B0 F1 B1 B1",
        "   T0 T1 F0 B0 B0 F1 B1 B1",
        "      T0 T1 F0 B0 B0 F1 B1 B1",
    ]


@pytest.mark.parametrize(("ranks", "microbatches"), list(product((1, 2, 4, 8), (1, 2, 8, 32))))
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_fused_obeys_its_law(ranks: int, microbatches: int, extractor: str) -> None:
    """DESIGN section 5: speed-up 3K / (3 + (K-1)/M) over one rank, extractor and messages left out."""
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


SETUPS = st.tuples(
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(1, 6),
    st.sampled_from(EXTRACTORS),
    st.sampled_from(UPDATES),
    st.sampled_from(("fused", "two_phase", "inference")),
)


def make(setup: tuple[int, int, int, str, str, str]) -> tuple[Placement, int, Lists]:
    ranks, more, microbatches, extractor, update, name = setup
    placement = Placement(place_by_count(ranks + more, ranks), extractor)  # type: ignore[arg-type]
    return placement, microbatches, lists(name, placement, microbatches, update)  # type: ignore[arg-type]


@settings(max_examples=300)
@given(SETUPS)
def test_no_schedule_deadlocks(setup: tuple[int, int, int, str, str, str]) -> None:
    _, _, actions = make(setup)
    simulate(actions, Durations(1, 2, 1, 2))


@settings(max_examples=300)
@given(SETUPS)
def test_each_piece_of_work_is_done_once_and_in_order(setup: tuple[int, int, int, str, str, str]) -> None:
    placement, microbatches, actions = make(setup)
    name = setup[-1]
    for r, mine in enumerate(actions):
        place = {action: k for k, action in enumerate(mine)}
        assert len(place) == len(mine), "no action occurs twice"
        for i, m in product(placement.refiners(r), range(microbatches)):
            student, teacher = Action(Do.FORWARD, m, i, graph=True), Action(Do.FORWARD, m, i)
            backward = Action(Do.BACKWARD, m, i)
            assert (student in place) == (backward in place) == (name != "inference")
            assert (teacher in place) == (name != "fused")
            if name != "inference":
                assert place[student] < place[backward]
            if name == "two_phase":
                assert place[teacher] < place[student]
        others = [a for a in mine if a.do in (Do.FORWARD, Do.BACKWARD) and a.refiner not in placement.refiners(r)]
        assert not others


@settings(max_examples=200)
@given(SETUPS)
def test_beliefs_leave_before_the_backward_and_receives_are_posted_ahead(
    setup: tuple[int, int, int, str, str, str],
) -> None:
    placement, microbatches, actions = make(setup)
    for r, mine in enumerate(actions):
        place = {action: k for k, action in enumerate(mine)}
        for m in range(microbatches):
            if r + 1 < placement.num_ranks:
                send = place[Action(Do.SEND_STATE, m, peer=r + 1)]
                assert all(send < k for a, k in place.items() if a.do is Do.BACKWARD and a.microbatch == m)
            if r > 0:
                post, wait = place[Action(Do.POST_STATE, m, peer=r - 1)], place[Action(Do.AWAIT_STATE, m, peer=r - 1)]
                assert post < wait
                work = [k for a, k in place.items() if a.do is Do.FORWARD and a.microbatch == m - 1]
                assert all(post < k for k in work), "posted before the work that precedes its use"


def test_one_group_for_the_whole_chain_would_stall_it() -> None:
    """Why neighbouring edges use different groups: in one, a receive posted ahead holds up the send behind it."""
    actions = lists("fused", Placement((1,) * 4), 4)
    assert simulate(actions, chain_groups=1).makespan > simulate(actions).makespan


def test_no_receive_is_posted_before_a_collective_that_its_sender_needs() -> None:
    """On NCCL a pending receive occupies the device; see `_open`."""
    for name, extractor in product(("fused", "two_phase", "inference"), EXTRACTORS):
        for mine in lists(name, Placement((1,) * 3, extractor), 3)[1:]:  # type: ignore[arg-type]
            first = next(k for k, a in enumerate(mine) if a.do is Do.POST_STATE)
            assert not [a for a in mine[first:] if a.do in (Do.START_GATHER, Do.START_BROADCAST, Do.AWAIT_GATHER)]


def test_fused_keeps_one_microbatch_alive() -> None:
    for r in range(3):
        alive: set[int | None] = set()
        for action in fused(RankView(Placement((2, 2, 3)), r, 5)):
            if action.do is Do.FORWARD:
                alive.add(action.microbatch)
            if action.do is Do.BACKWARD and action.refiner == RankView(Placement((2, 2, 3)), r, 5).refiners[-1]:
                alive.remove(action.microbatch)
            assert len(alive) <= 1


def test_two_phase_keeps_one_refiner_alive() -> None:
    local = [a for a in two_phase(RankView(Placement((3, 2)), 0, 2)) if a.do in (Do.FORWARD, Do.BACKWARD)]
    students = [a for a in local if a.graph or a.do is Do.BACKWARD]
    for forward, backward in list(pairwise(students))[::2]:
        assert (forward.do, backward.do) == (Do.FORWARD, Do.BACKWARD)
        assert (forward.refiner, forward.microbatch) == (backward.refiner, backward.microbatch)


def test_one_rank_sends_nothing() -> None:
    messages = {Do.SEND_STATE, Do.POST_STATE, Do.AWAIT_STATES_SENT, Do.RELEASE_PARAMETER_GRADIENTS}
    messages |= {Do.START_GATHER, Do.START_BROADCAST, Do.START_SCATTER, Do.START_REDUCE}
    for name, extractor, update in product(("fused", "two_phase", "inference"), EXTRACTORS, UPDATES):
        (mine,) = lists(name, Placement((3,), extractor), 2, update)  # type: ignore[arg-type]
        assert not messages & {action.do for action in mine}


def test_the_simulator_can_fail() -> None:
    """Without its receives, or with its collectives in another order, a schedule is found out."""
    actions = lists("fused", Placement((1, 1)), 2)
    with pytest.raises(DeadlockError, match="await the state of microbatch 0 from rank 0"):
        simulate([actions[0], [a for a in actions[1] if a.do is not Do.POST_STATE]])
    swapped = [list(mine) for mine in actions]
    first, second = (k for k, a in enumerate(swapped[1]) if a.do is Do.START_SCATTER)
    swapped[1][first], swapped[1][second] = swapped[1][second], swapped[1][first]
    with pytest.raises(AssertionError, match="differs between ranks"):
        simulate(swapped)


def test_actions_name_themselves() -> None:
    assert str(Action(Do.FORWARD, 1, 3)) == "forward of refiner 3 of microbatch 1"
    assert str(Action(Do.SEND_STATE, 0, peer=2)) == "send the state of microbatch 0 to rank 2"
    assert str(Action(Do.AWAIT_STATE, 0, peer=1)) == "await the state of microbatch 0 from rank 1"
