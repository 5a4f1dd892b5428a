"""The schedule without a flush: its drawing, its law, and the rules that keep it from waiting or deadlocking."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.placement import Placement, place_by_count
from sidpar.schedules.rank_view import RankView
from sidpar.schedules.streaming import Turn, all_streams, drain, streaming
from sidpar.schedules.synchronous import fused
from sidpar.simulation.simulator import simulate
from tests.schedules.setups import Durations, Lists

EXTRACTORS = ("replicated", "root", "sharded")


def period(placement: Placement, microbatches: int, staleness: int, durations: Durations) -> float:
    """Time from one step to the next, once the stream is under way."""
    ends = [simulate(all_streams(placement, microbatches, staleness, steps), durations).makespan for steps in (8, 14)]
    return (ends[1] - ends[0]) / 6


def test_drawn_as_in_its_docstring() -> None:
    timeline = simulate(all_streams(Placement((1, 1, 1), "replicated"), 2, 1, 2), Durations())
    assert timeline.draw() == [
        "F0 B0 B0 F1 B1 B1 F0 B0 B0 F1 B1 B1",
        "   F0 B0 B0 F1 B1 B1 F0 B0 B0 F1 B1 B1",
        "      F0 B0 B0 F1 B1 B1 F0 B0 B0 F1 B1 B1",
    ]


@pytest.mark.parametrize(("ranks", "extractor"), list(product((1, 2, 4, 8, 16), EXTRACTORS)))
def test_staleness_of_one_hides_the_chain(ranks: int, extractor: str) -> None:
    """A step takes f + b from M = (K-1)/3 on; a sharded extractor needs (K+4)/3 (`streaming.py`)."""
    placement = Placement((1,) * ranks, extractor)  # type: ignore[arg-type]
    enough = -(-(ranks + 4 if extractor == "sharded" else ranks - 1) // 3)
    for microbatches in (enough, enough + 1, 4 * ranks):
        if microbatches == 0:
            continue
        durations = Durations(1 / microbatches, 2 / microbatches)
        assert period(placement, microbatches, 1, durations) == pytest.approx(3), microbatches


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_too_few_microbatches_show(extractor: str) -> None:
    """One microbatch on eight ranks: the last rank's gradient comes seven hops late, more than the step takes."""
    placement = Placement((1,) * 8, extractor)  # type: ignore[arg-type]
    assert period(placement, 1, 1, Durations()) > 4
    if extractor != "sharded":
        assert period(placement, 1, 3, Durations()) < period(placement, 1, 1, Durations())


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_extractors_work_counts_once(extractor: str) -> None:
    """With an extractor, a step takes what the busiest rank has to do, and nothing for waiting."""
    ranks, microbatches = 4, 8
    placement = Placement((1,) * ranks, extractor)  # type: ignore[arg-type]
    durations = Durations(1 / 8, 2 / 8, 0.4, 0.8)
    times = {"replicated": microbatches, "root": microbatches, "sharded": 1}[extractor]
    assert period(placement, microbatches, 1, durations) == pytest.approx(3 + times * 1.2, rel=0.001)


SETUPS = st.tuples(
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from(EXTRACTORS),
    st.booleans(),
    st.booleans(),
)
Setup = tuple[int, int, int, int, int, Any, bool, bool]


def make(setup: Setup) -> tuple[Placement, Lists]:
    ranks, more, microbatches, staleness, steps, extractor, trains, chain = setup
    placement = Placement(place_by_count(ranks + more, ranks), extractor)
    declared = {"trains_extractor": trains, "passes_states": chain}
    return placement, all_streams(placement, microbatches, staleness, steps, **declared)


@settings(max_examples=200)
@given(SETUPS)
def test_every_gradient_is_applied_once(setup: Setup) -> None:
    """That of the refiners in the batch's own turn, that of the extractor S turns later."""
    placement, actions = make(setup)
    _, _, microbatches, staleness, steps, extractor, trains, _ = setup
    for r, mine in enumerate(actions):
        place = {action: k for k, action in enumerate(mine)}
        holds = placement.holds_extractor(r) and trains
        updates = [a.step for a in mine if a.do is Do.UPDATE_EXTRACTOR]
        assert updates == (list(range(steps)) if holds else []), "each batch, in order"
        assert [a.step for a in mine if a.do is Do.UPDATE_REFINERS] == list(range(steps))
        for t, m, i in product(range(steps), range(microbatches), placement.refiners(r)):
            assert place[Action(Do.BACKWARD, m, i, step=t)] < place[Action(Do.UPDATE_REFINERS, step=t)]
        for t, m in product(range(steps if holds else 0), [None] if extractor == "sharded" else range(microbatches)):
            extract = place[Action(Do.EXTRACT, m, graph=True, step=t)]
            backward = place[Action(Do.EXTRACTOR_BACKWARD, m, step=t)]
            assert backward < place[Action(Do.UPDATE_EXTRACTOR, step=t)]
            known = [s for s in range(steps) if place[Action(Do.UPDATE_EXTRACTOR, step=s)] < extract]
            assert known == list(range(max(0, t - staleness))), "features know all updates but the last S"


@settings(max_examples=100)
@given(SETUPS)
def test_a_receive_is_posted_after_the_collectives_that_its_sender_needs(setup: Setup) -> None:
    """Or whatever makes a GPU wait for all its streams would close a circle: see `schedules/synchronous.py`, rule 2."""
    _, actions = make(setup)
    steps = setup[4]
    starts = (Do.START_GATHER, Do.START_BROADCAST)
    for mine in actions[1:]:
        for t in range(steps):
            post = next((k for k, a in enumerate(mine) if a.do is Do.POST_STATE and a.step == t), None)
            assert (post is not None) == setup[-1], "received where there is a chain"
            if post is None:
                continue
            assert not [a for a in mine[post:] if a.do in starts and a.step <= t]


def test_a_drained_batch_at_a_time_is_fused() -> None:
    """A stream of one batch does what `fused` does, and the updates after it."""
    for extractor, rank in product(EXTRACTORS, range(3)):
        view = RankView(Placement((1, 2, 1), extractor), rank, 4)  # type: ignore[arg-type]
        turn = Turn(1, 0, True)
        mine = [*streaming(view, turn), *drain(view, turn)]
        updates = {Do.UPDATE_REFINERS, Do.UPDATE_EXTRACTOR}
        assert {a for a in mine if a.do not in updates} == set(fused(view))
