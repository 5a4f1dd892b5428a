"""The simulator itself: what it finds out, and what its stricter mode adds."""

import pytest

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.placement import Placement
from sidpar.schedules.synchronous import all_ranks, fused
from sidpar.simulation.simulator import DeadlockError, simulate
from tests.schedules.setups import Durations, Lists


def test_it_can_fail() -> None:
    """Without its receives, or with its collectives in another order, a schedule is found out."""
    actions = all_ranks(fused, Placement((1, 1)), 2)
    with pytest.raises(DeadlockError, match="await the state of microbatch 0 from rank 0"):
        simulate([actions[0], [a for a in actions[1] if a.do is not Do.POST_STATE]], Durations())
    swapped = [list(mine) for mine in actions]
    first, second = (k for k, a in enumerate(swapped[1]) if a.do is Do.START_SCATTER)
    swapped[1][first], swapped[1][second] = swapped[1][second], swapped[1][first]
    with pytest.raises(AssertionError, match="differs between ranks"):
        simulate(swapped, Durations())
    without = [actions[0], [a for a in actions[1] if a.do is not Do.RELEASE_PARAMETER_GRADIENTS]]
    with pytest.raises(DeadlockError, match="await the extractor's parameter gradients"):
        simulate(without, Durations())


def test_one_group_for_the_whole_chain_would_stall_it() -> None:
    """Why neighbouring edges use different groups: in one, a receive posted ahead holds up the send behind it."""
    actions = all_ranks(fused, Placement((1,) * 4), 4)
    assert simulate(actions, Durations(), chain_groups=1).makespan > simulate(actions, Durations()).makespan


def two_ranks_that_send_first(*, together: bool) -> Lists:
    """An activation there and a gradient back, each sent before the other is received; `together`: right before."""
    between = [] if together else [Action(Do.SECTION_FORWARD, 1, section=0)]
    there, back = {"microbatch": 0, "section": 1}, {"microbatch": 1, "section": 0}
    return [
        [Action(Do.SEND_ACTIVATION, peer=1, **there), *between, Action(Do.AWAIT_ACTIVATION_GRADIENT, peer=1, **back)],
        [Action(Do.SEND_ACTIVATION_GRADIENT, peer=0, **back), *between, Action(Do.AWAIT_ACTIVATION, peer=0, **there)],
    ]


def test_rendezvous_buffers_nothing() -> None:
    """Two neighbours that both send first wait for each other, unless each posts its receive in one batch with its
    send."""
    for together in (True, False):
        simulate(two_ranks_that_send_first(together=together), Durations())
    simulate(two_ranks_that_send_first(together=True), Durations(), rendezvous=True)
    with pytest.raises(DeadlockError, match="the activation of section 1 .*send the activation's gradient"):
        simulate(two_ranks_that_send_first(together=False), Durations(), rendezvous=True)


def test_rendezvous_keeps_the_sender_until_its_receive_is_posted() -> None:
    work = [Action(Do.FORWARD, 0, 1) for _ in range(3)]
    send, post = Action(Do.SEND_STATE, 0, peer=1), Action(Do.POST_STATE, 0, peer=0)
    lists = [[send], [*work, post, Action(Do.AWAIT_STATE, 0, peer=0)]]
    assert simulate(lists, Durations()).ends == [0, 3]
    assert simulate(lists, Durations(), rendezvous=True).ends == [3, 3]
