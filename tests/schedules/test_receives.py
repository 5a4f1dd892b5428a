"""Receives that are posted when they are needed: what is done stays the same, and lists still end."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.receives import SHARED, when_needed
from sidpar.schedules.streaming import Turn, streaming
from sidpar.simulation.first_use import check_loads
from sidpar.simulation.simulator import simulate
from tests.schedules.setups import SYNCHRONOUS, Durations, Setup, setups


@settings(max_examples=300)
@given(setups([*SYNCHRONOUS, "streaming"], ["loop", "stacked"]))
def test_the_same_actions_in_an_order_that_ends(setup: Setup) -> None:
    """Also where a step may wait for the device at any action; streams that may not are those of
    `tests/simulation/test_first_use.py`."""
    ahead = setup.lists()
    late = [list(when_needed(mine)) for mine in ahead]
    for before, after in zip(ahead, late, strict=True):
        assert set(after) == set(before)
        assert len(after) == len(before)
        others = [[a for a in mine if a.do is not Do.POST_STATE] for mine in (before, after)]
        assert others[0] == others[1]
        assert all((k.do is Do.POST_STATE) == (n.do is Do.AWAIT_STATE) for k, n in pairwise(after))
    simulate(late, Durations(1, 2, 1, 2))
    simulate(late, Durations(1, 2, 1, 2), rendezvous=True)
    if setup.schedule != "streaming" or setup.extractor == "replicated":
        check_loads(late, lambda *_: True)


@settings(max_examples=300)
@given(setups([*SYNCHRONOUS, "streaming"], ["loop", "stacked"]))
def test_where_batch_norms_wait_for_each_other(setup: Setup) -> None:
    """What has been sent before all ranks wait for each other is received before that: so lists end, even if nothing
    that is sent is kept on its way. A step may still wait for the device at any action."""
    setup = replace(setup, extractor="sharded")
    ahead = setup.lists()
    late = [list(when_needed(mine, sender)) for mine, sender in zip(ahead, [(), *ahead[:-1]], strict=True)]
    for rank, (before, after) in enumerate(zip(ahead, late, strict=True)):
        assert [a for a in after if a.do is not Do.POST_STATE] == [a for a in before if a.do is not Do.POST_STATE]
        assert sorted(map(str, after)) == sorted(map(str, before))
        for k, work in enumerate(after) if rank > 0 and setup.has_chain else ():
            if work.do in SHARED:
                sent = [a for a in late[rank - 1][: late[rank - 1].index(work)] if a.do is Do.SEND_STATE]
                assert len(sent) <= len([a for a in after[:k] if a.do is Do.POST_STATE])
    simulate(late, Durations(1, 2, 1, 2), shares_statistics=True)
    simulate(late, Durations(1, 2, 1, 2), rendezvous=True, shares_statistics=True)
    if setup.schedule != "streaming":
        check_loads(late, lambda *_: True, shares_statistics=True)


def test_a_turn_posts_its_own_receives() -> None:
    """In place of the next turn's."""
    view = Setup("streaming", (1, 1), 2, "sharded", True, True, "loop", 1, 2).view(1)
    turn = list(when_needed(streaming(view, Turn(1, 1, last=False))))
    assert [a for a in turn if a.do is Do.POST_STATE] == [Action(Do.POST_STATE, m, peer=0) for m in (0, 1)]
