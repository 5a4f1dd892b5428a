"""What replicas add to the lists of actions: sums of gradients, started during the last backwards, and nothing else."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import RankView
from sidpar.schedules.streaming import Turn, drain, streaming
from sidpar.schedules.synchronous import all_ranks, fused
from sidpar.simulation.simulator import simulate
from tests.schedules.setups import SYNCHRONOUS, Durations, Lists, Setup, setups

REFINERS = (Do.RELEASE_REFINER_GRADIENTS, Do.AWAIT_REFINER_GRADIENTS)
EXTRACTOR = (Do.RELEASE_PARAMETER_GRADIENTS, Do.AWAIT_PARAMETER_GRADIENTS)


SETUPS = setups([*SYNCHRONOUS, "streaming"], ["loop", "stacked"])


@settings(max_examples=300)
@given(SETUPS)
def test_replicas_add_sums_of_gradients_and_nothing_else(setup: Setup) -> None:
    """So whatever holds for the lists of one cascade holds for those of several; and nobody waits for ever."""
    sums = (*REFINERS, *EXTRACTOR)
    for one, several in zip(setup.lists(1), setup.lists(3), strict=True):
        assert [a for a in several if a.do not in sums] == [a for a in one if a.do not in sums]
        assert not [a for a in one if a.do in REFINERS]
        assert [a for a in several if a in one] == one
    simulate(setup.lists(3), Durations(1, 2, 1, 2), extractor_holders=1 if setup.extractor == "root" else None)


@settings(max_examples=300)
@given(SETUPS)
def test_gradients_leave_during_the_last_backwards(setup: Setup) -> None:
    """The refiners', on every rank; the extractor's, on those that hold it."""
    last = setup.microbatches - 1
    for (rank, mine), step in product(enumerate(setup.lists(2)), setup.batches):
        batch = [action for action in mine if action.step == step]
        trains = setup.schedule != "inference"
        learns = Do.LEARN if setup.execution == "stacked" else Do.BACKWARD
        assert_summed(batch, REFINERS, learns, Do.UPDATE_REFINERS, trains, last)
        trains_extractor = trains and setup.trains_extractor and setup.placement.holds_extractor(rank)
        whole = None if setup.extractor == "sharded" else last
        assert_summed(batch, EXTRACTOR, Do.EXTRACTOR_BACKWARD, Do.UPDATE_EXTRACTOR, trains_extractor, whole)


def assert_summed(
    batch: list[Action], verbs: tuple[Do, Do], backward: Do, update: Do, expected: bool, last: int | None
) -> None:
    """Released once, before the backwards of the last microbatch and after all others; awaited after these, before the
    update; or neither."""
    release, wait = ([k for k, action in enumerate(batch) if action.do is verb] for verb in verbs)
    assert len(release) == len(wait) == expected
    if not expected:
        return
    backwards = {k: action.microbatch for k, action in enumerate(batch) if action.do is backward}
    assert all((k > release[0]) == (m == last) for k, m in backwards.items())
    assert all(k < wait[0] for k in backwards)
    assert all(k > wait[0] for k, action in enumerate(batch) if action.do is update)


@pytest.mark.parametrize("extractor", ["replicated", "root", "sharded"])
def test_a_drained_batch_at_a_time_is_fused(extractor: Any) -> None:
    """With replicas, too."""
    for rank in range(3):
        view = RankView(Placement((1, 2, 1), extractor), rank, 4, replicas=2)
        turn = Turn(1, 0, True)
        mine = [*streaming(view, turn), *drain(view, turn)]
        assert {a for a in mine if a.do not in (Do.UPDATE_REFINERS, Do.UPDATE_EXTRACTOR)} == set(fused(view))


def two_refiners_per_rank(replicas: int) -> Lists:
    return all_ranks(fused, Placement((2, 2), "sharded"), 3, replicas=replicas)


@pytest.mark.parametrize(("seconds", "longer"), [(2.0, 2.0), (3.0, 3.0), (4.0, 5.0)])
def test_a_sum_hides_behind_the_work_to_come(seconds: float, longer: float) -> None:
    """On the last rank, the first refiner's gradient travels behind the second one's forward and backward of 3; what
    it takes longer delays the second one's."""
    durations = Durations()

    def with_sums(rank: int, action: Action) -> float:
        return seconds if action.do is Do.RELEASE_REFINER_GRADIENTS else durations(rank, action)

    alone = simulate(two_refiners_per_rank(1), Durations()).makespan
    assert simulate(two_refiners_per_rank(2), with_sums).makespan == alone + longer


def test_the_simulator_finds_sums_that_were_never_released() -> None:
    lists = two_refiners_per_rank(2)
    with pytest.raises(AssertionError, match="awaited that have not been released"):
        simulate([[a for a in mine if a.do is not Do.RELEASE_REFINER_GRADIENTS] for mine in lists], Durations())
