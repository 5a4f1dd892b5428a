"""What every list of actions obeys, whichever schedule made it: nobody waits for ever, messages pair up, work and
reductions are done once and in order, and memory stays within a bound stated per schedule."""

from collections.abc import Callable
from itertools import product

from hypothesis import given, settings

from sidpar.schedules.actions import Action, Do
from sidpar.simulation.simulator import GROUPS, simulate
from tests.schedules.setups import PIPELINES, SYNCHRONOUS, Durations, Lists, Setup, setups

RECEIVES = {
    Do.SEND_STATE: (Do.POST_STATE, Do.AWAIT_STATE),
    Do.SEND_ACTIVATION: (Do.AWAIT_ACTIVATION,),
    Do.SEND_ACTIVATION_GRADIENT: (Do.AWAIT_ACTIVATION_GRADIENT,),
}


@settings(max_examples=1000)
@given(setups([*SYNCHRONOUS, "streaming", *PIPELINES], ["loop"]))
def test_lists(setup: Setup) -> None:
    lists = setup.lists()
    simulate(lists, Durations(1, 2, 1, 2), rendezvous=True)
    if setup.extractor == "sharded":
        simulate(lists, Durations(1, 2, 1, 2), rendezvous=True, shares_statistics=True)
    check_messages(lists)
    for rank, mine in enumerate(lists):
        assert len(set(mine)) == len(mine), "no action occurs twice"
        if setup.schedule in PIPELINES:
            check_sections(setup, rank, mine)
        else:
            check_refiners(setup, rank, mine)
            check_states(setup, rank, mine)
            check_extractor(setup, rank, mine)


def check_messages(lists: Lists) -> None:
    """Every send has its receive, every collective all its ranks, in the same order on all of them."""
    for sender, receiver in product(range(len(lists)), repeat=2):
        for send, receives in RECEIVES.items():
            sent = [(a.step, a.microbatch, a.section) for a in lists[sender] if (a.do, a.peer) == (send, receiver)]
            for do in receives:
                received = [
                    (a.step, a.microbatch, a.section) for a in lists[receiver] if (a.do, a.peer) == (do, sender)
                ]
                assert received == sent
    for group in set(GROUPS.values()):
        orders = [[(a.do, a.step, a.microbatch) for a in mine if GROUPS.get(a.do) == group] for mine in lists]
        assert all(order == orders[0] for order in orders)


def check_sections(setup: Setup, rank: int, mine: list[Action]) -> None:
    """Every microbatch forward, then back; GPipe keeps all M of them, 1F1B as many as there are ranks behind."""
    work = [(a.do, a.section, a.microbatch) for a in mine if a.do in (Do.SECTION_FORWARD, Do.SECTION_BACKWARD)]
    assert len(work) == 2 * setup.microbatches
    bound = setup.microbatches if setup.schedule == "gpipe" else setup.ranks - rank
    alive(mine, {Do.SECTION_FORWARD}, {Do.SECTION_BACKWARD}, lambda kept: len(kept) <= bound)


def check_refiners(setup: Setup, rank: int, mine: list[Action]) -> None:
    """Each refiner here and no other, once per microbatch; one microbatch is alive, in `two_phase` one refiner of it.
    The teacher passes of `two_phase`, and all passes of an evaluation, record nothing. Without a chain, there are no
    teachers, and one refiner is alive in any schedule."""
    trains, chain = setup.schedule != "inference", setup.has_chain and setup.schedule in ("two_phase", "inference")
    one_by_one = setup.schedule == "two_phase" or not setup.has_chain
    everything = set(product(setup.batches, range(setup.microbatches), setup.placement.refiners(rank)))
    for do, graph, expected in (
        (Do.FORWARD, True, trains),
        (Do.BACKWARD, False, trains),
        (Do.FORWARD, False, chain),
    ):
        found = {(a.step, a.microbatch, a.refiner) for a in mine if (a.do, a.graph) == (do, graph)}
        assert found == (everything if expected else set())

    def bounded(kept: set[Action]) -> bool:
        microbatches = {(a.step, a.microbatch) for a in kept}
        return len(kept if one_by_one else microbatches) <= 1

    alive(mine, {Do.FORWARD}, {Do.BACKWARD}, bounded)


def check_states(setup: Setup, rank: int, mine: list[Action]) -> None:
    """A belief leaves before the backward of its microbatch; a receive is posted one microbatch ahead of its use."""
    place = {action: k for k, action in enumerate(mine)}
    if not setup.has_chain:
        verbs = {Do.SEND_STATE, Do.POST_STATE, Do.AWAIT_STATE, Do.AWAIT_STATES_SENT}
        assert not verbs & {action.do for action in mine}
        return
    for t, m in product(setup.batches, range(setup.microbatches)):
        if rank + 1 < setup.ranks:
            send = place[Action(Do.SEND_STATE, m, peer=rank + 1, step=t)]
            assert all(send < k for a, k in place.items() if (a.do, a.step, a.microbatch) == (Do.BACKWARD, t, m))
        if rank > 0:
            post, wait = (place[Action(do, m, peer=rank - 1, step=t)] for do in (Do.POST_STATE, Do.AWAIT_STATE))
            assert post < wait
            assert all(post < k for a, k in place.items() if (a.do, a.step, a.microbatch) == (Do.FORWARD, t, m - 1))


def check_extractor(setup: Setup, rank: int, mine: list[Action]) -> None:
    """Every gradient of the features is reduced once, after the last local backward that adds to it; every gradient of
    the extractor is computed once, after these, and summed over ranks once, and complete before its update."""
    view, place = setup.view(rank), {action: k for k, action in enumerate(mine)}
    trains = setup.schedule != "inference" and view.trains_extractor
    start = Do.START_SCATTER if setup.extractor == "sharded" else Do.START_REDUCE
    gather = Do.AWAIT_SCATTERS if setup.extractor == "sharded" else Do.AWAIT_REDUCE
    whole = setup.extractor == "sharded"
    backwards = {(a.step, a.microbatch): a for a in mine if a.do is Do.EXTRACTOR_BACKWARD}
    units = set(product(setup.batches, [None] if whole else range(setup.microbatches)))
    assert set(backwards) == (units if trains and view.runs_extractor_backward else set())

    reductions = {(a.step, a.microbatch) for a in mine if a.do is start}
    travels = trains and view.shares_features
    assert reductions == (set(product(setup.batches, range(setup.microbatches))) if travels else set())
    for t, m in reductions:
        local = [place[Action(Do.BACKWARD, m, i, step=t)] for i in view.refiners]
        assert max(local) < place[Action(start, m, step=t)]
        if view.runs_extractor_backward:
            complete = place[Action(gather, None if whole else m, step=t)]
            assert place[Action(start, m, step=t)] < complete < place[backwards[t, None if whole else m]]

    for t in setup.batches if trains and view.reduces_parameters else ():
        last = backwards[t, None if whole else setup.microbatches - 1]
        released = place[Action(Do.RELEASE_PARAMETER_GRADIENTS, step=t)]
        summed = place[Action(Do.AWAIT_PARAMETER_GRADIENTS, step=t)]
        assert released + 1 == place[last] < summed
        assert summed < place.get(Action(Do.UPDATE_EXTRACTOR, step=t), len(mine))
    check_extractor_memory(setup, mine)


def check_extractor_memory(setup: Setup, mine: list[Action]) -> None:
    """Activations of the extractor. Synchronous: one share of the batch (sharded), all of it (root), K microbatches at
    most (replicated; in `two_phase` one). Streaming: one microbatch (replicated), else S + 1 batches; and for all
    placements, S + 1 versions of the weights are enough."""
    streams = setup.schedule == "streaming"

    def bounded(kept: set[Action]) -> bool:
        batches = {a.step for a in kept}
        if setup.extractor == "replicated":
            return len(kept) <= (setup.ranks if setup.schedule == "fused" else 1)
        return len(batches) <= (setup.staleness + 1 if streams else 1)

    alive(mine, {Do.EXTRACT}, {Do.EXTRACTOR_BACKWARD}, bounded)
    if streams:
        alive(mine, {Do.EXTRACT}, {Do.UPDATE_EXTRACTOR}, lambda kept: len(kept) <= setup.staleness + 1, by_batch=True)


def alive(
    mine: list[Action], begin: set[Do], end: set[Do], bounded: Callable[[set[Action]], bool], *, by_batch: bool = False
) -> None:
    """Walk through a list: what an action in `begin` records lives until its `end`, which must come; `bounded` holds
    for all that is alive at any time. With `by_batch`, the batch lives and not the single piece of work."""
    kept: dict[tuple[object, ...], Action] = {}
    for action in mine:
        key = (action.step,) if by_batch else (action.step, action.microbatch, action.refiner, action.section)
        if action.do in begin and (action.graph or action.section is not None):
            kept[key] = action
        elif action.do in end:
            del kept[key]
        assert bounded(set(kept.values()))
    assert not kept
