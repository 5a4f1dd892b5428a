"""What each rank does in one step, and in which order: pure data.

A schedule maps (placement, rank, M microbatches) to a list of `Action`s. The engine executes that list, the cost
model times it, the profiler draws it and the tests check it; nothing else knows the order.

Letters: i refiner, r rank, K ranks, m microbatch, M microbatches. `fused`, K = 3, M = 2, one refiner per rank
(F = forward, B = backward with twice its length; a belief leaves at the end of its F, before the B):

    rank 0   F0 B0 B0 F1 B1 B1
    rank 1      F0 B0 B0 F1 B1 B1
    rank 2         F0 B0 B0 F1 B1 B1

`two_phase`, the same network: the gradient-free chain T, then all local forward-backwards at once:

    rank 0   T0 T1 F0 B0 B0 F1 B1 B1
    rank 1      T0 T1 F0 B0 B0 F1 B1 B1
    rank 2         T0 T1 F0 B0 B0 F1 B1 B1

A rule that passes no states needs no chain, and no rank waits for another one but for features:

    rank 0   F0 B0 B0 F1 B1 B1
    rank 1   F0 B0 B0 F1 B1 B1
    rank 2   F0 B0 B0 F1 B1 B1

Rules that hold for every schedule, because a message that waits for the wrong thing is a deadlock on NCCL:

1. On each rank, the messages to one peer, and the collectives of one group (features, feature gradients, parameter
   gradients), are started in an order that is the same on both sides. Replicas of a cascade have the same lists.
2. Every message is started (`POST_STATE`, `SEND_STATE`, `START_…`) without waiting; only an `AWAIT_…` waits. A receive
   is posted one microbatch ahead of its use, but not before the collectives that its sender needs are started here;
   on NCCL it is moved to its use (`receives.py`).
3. A belief is sent before the backward of its microbatch starts.
4. Where batch norms share their statistics, a forward or a backward is itself a collective, of all ranks (`EXTRACT`
   and `EXTRACTOR_BACKWARD` of a sharded extractor) or of a rank's copies in all replicas. Both come in the same order
   on all of these, and before no message that another of them needs first. A rank without rows takes part.

The third schedule, `streaming`, runs over many batches and has a file of its own.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from sidpar.config.groups.choices import SynchronousName
from sidpar.schedules.actions import Action, Do
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import RankView, rank_views


def fused(view: RankView) -> Iterator[Action]:
    """One forward per refiner, kept as teacher of the next and as student; its backward follows at once.

    Only one microbatch of one rank's refiners has saved activations at any time; on the last rank, of one refiner.
    """
    graph = view.runs_extractor_backward
    ahead, lag = _lookahead(view), _lag(view)
    yield from open_batch(view, graph=graph, lookahead=ahead)
    for m in range(view.microbatches):
        yield from receive(view, m)
        yield from learn(view, m)
        yield from return_feature_gradient(view, m, lag=lag)
        yield from extract_ahead(view, m, graph=graph, lookahead=ahead)
    yield from _finish_extractor(view, lag=lag)
    yield from await_refiners(view)
    yield from _close(view)


def two_phase(view: RankView) -> Iterator[Action]:
    """The paper's Algorithm 1, a gradient-free chain that caches the teacher beliefs, then its Algorithm 2: features
    recomputed with a graph, and every refiner's forward and backward, one refiner's activations at a time. Without a
    chain there are no teachers to cache: then it is `fused`."""
    if not view.passes_states:
        yield from fused(view)
        return
    yield from _chain(view)
    whole_batch = view.extraction == "sharded"
    if view.runs_extractor_backward and whole_batch:
        yield Action(Do.EXTRACT, graph=True)
    for m in range(view.microbatches):
        if view.runs_extractor_backward and not whole_batch:
            yield Action(Do.EXTRACT, m, graph=True)
        yield from _learn_one_by_one(view, m)
        yield from return_feature_gradient(view, m, lag=0)
    yield from _finish_extractor(view, lag=0)
    yield from await_refiners(view)
    yield from _close(view)


def inference(view: RankView) -> Iterator[Action]:
    """The plain chain of forwards: evaluation through the placed cascade, whatever the rule that trained it."""
    view = replace(view, passes_states=True)
    yield from _chain(view)
    yield from _close(view)


SCHEDULES: dict[SynchronousName, Callable[[RankView], Iterator[Action]]] = {
    "two_phase": two_phase,
    "fused": fused,
}


def all_ranks(
    schedule: Callable[[RankView], Iterator[Action]],
    placement: Placement,
    microbatches: int,
    **declared: Any,
) -> list[list[Action]]:
    """The lists of all ranks of a cascade, one of several replicas; `declared` as for `rank_views`."""
    return [list(schedule(view)) for view in rank_views(placement, microbatches, **declared)]


def _chain(view: RankView) -> Iterator[Action]:
    """Every refiner's forward without a graph, belief by belief."""
    yield from open_batch(view, graph=False, lookahead=_lookahead(view))
    for m in range(view.microbatches):
        yield from receive(view, m)
        for i in view.refiners:
            yield Action(Do.FORWARD, m, i)
        yield from send(view, m)
        yield from extract_ahead(view, m, graph=False, lookahead=_lookahead(view))


def open_batch(view: RankView, *, graph: bool, lookahead: int) -> Iterator[Action]:
    """The features that must exist before the chain starts, and the first receive."""
    match view.extraction:
        case "sharded":
            yield from extract_shard(view, graph=graph)
            if view.shares_features:
                yield Action(Do.AWAIT_GATHER)
        case "root":
            yield from broadcast(view, graph=graph)
        case "replicated":
            for m in range(min(lookahead, view.microbatches)):
                yield Action(Do.EXTRACT, m, graph=graph)
    if view.previous is not None:
        # Not before the collectives above: a receive that waits on the device must never stand between this rank and
        # a collective that its sender needs, or whatever makes the device wait for all streams closes the circle.
        yield Action(Do.POST_STATE, 0, peer=view.previous)


def extract_shard(view: RankView, *, graph: bool, step: int = 0) -> Iterator[Action]:
    """One forward over this rank's share of all microbatches: many small ones would waste the device."""
    yield Action(Do.EXTRACT, graph=graph, step=step)
    if view.shares_features:
        yield Action(Do.START_GATHER, step=step)


def broadcast(view: RankView, *, graph: bool, step: int = 0) -> Iterator[Action]:
    """Per microbatch, so that the other ranks start before the last one is extracted."""
    for m in range(view.microbatches):
        if view.rank == 0:
            yield Action(Do.EXTRACT, m, graph=graph, step=step)
        yield Action(Do.START_BROADCAST, m, step=step)


def extracts_ahead(actions: Iterable[Action]) -> bool:
    """Whether the extractor makes a forward with a graph before the backward of another one."""
    under_way = 0
    for action in actions:
        if action.do is Do.EXTRACT and action.graph:
            under_way += 1
        elif action.do is Do.EXTRACTOR_BACKWARD:
            under_way -= 1
        if under_way > 1:
            return True
    return False


def _lookahead(view: RankView) -> int:
    """How many microbatches a replicated extractor is ahead of the refiners: rank r waits r hops for its first
    teacher belief, and extracts r microbatches more meanwhile. With `_lag`, this hides the chain's hops behind the
    extractor's work, at the price of K microbatches of extractor activations on each rank."""
    return 1 + view.hops_before


def _lag(view: RankView) -> int:
    """How many microbatches a replicated extractor's backward is behind the refiners': rank r has K-1-r hops behind
    it that the last belief must still take, and does that many extractor backwards meanwhile."""
    return view.hops_behind


def extract_ahead(view: RankView, m: int, *, graph: bool, lookahead: int) -> Iterator[Action]:
    """A replicated extractor is `lookahead` microbatches ahead of the refiners."""
    ahead = m + lookahead
    if view.extraction == "replicated" and ahead < view.microbatches:
        yield Action(Do.EXTRACT, ahead, graph=graph)


def receive(view: RankView, m: int) -> Iterator[Action]:
    """What microbatch m needs of other ranks; the receive of the next one is posted."""
    if view.extraction == "root" and view.rank > 0:
        yield Action(Do.AWAIT_BROADCAST, m)
    if view.previous is not None:
        yield Action(Do.AWAIT_STATE, m, peer=view.previous)
        if m + 1 < view.microbatches:
            yield Action(Do.POST_STATE, m + 1, peer=view.previous)


def learn(view: RankView, m: int) -> Iterator[Action]:
    """One microbatch through this rank's refiners, its belief sent before the backward starts. Stacked, the forwards
    that make the beliefs record no graph, and all refiners then learn in one batched computation. Where no other rank
    waits for this one's belief, on the last rank, one refiner's activations are alive at a time."""
    stacked = view.refiner_execution == "stacked"
    if not view.passes_states or (view.next is None and not stacked):
        yield from _learn_one_by_one(view, m)
        return
    for i in view.refiners:
        yield Action(Do.FORWARD, m, i, graph=not stacked)
    yield from send(view, m)
    yield from release_refiners(view, m)
    if stacked:
        yield Action(Do.LEARN, m)
    else:
        for i in view.refiners:
            yield Action(Do.BACKWARD, m, i)


def _learn_one_by_one(view: RankView, m: int) -> Iterator[Action]:
    """Forward and backward of each refiner, whose state is there, or of all at once."""
    yield from release_refiners(view, m)
    if view.refiner_execution == "stacked":
        yield Action(Do.LEARN, m)
        return
    for i in view.refiners:
        yield Action(Do.FORWARD, m, i, graph=True)
        yield Action(Do.BACKWARD, m, i)


def send(view: RankView, m: int) -> Iterator[Action]:
    """The belief, before its backward."""
    if view.next is not None:
        yield Action(Do.SEND_STATE, m, peer=view.next)


def release_refiners(view: RankView, m: int) -> Iterator[Action]:
    """Before the last microbatch's backwards: each bucket of gradients leaves as soon as these complete it."""
    if view.reduces_refiners and m == view.microbatches - 1:
        yield Action(Do.RELEASE_REFINER_GRADIENTS)


def await_refiners(view: RankView) -> Iterator[Action]:
    """This rank's refiners have their gradients of the whole batch."""
    if view.reduces_refiners:
        yield Action(Do.AWAIT_REFINER_GRADIENTS)


def return_feature_gradient(view: RankView, m: int, *, lag: int) -> Iterator[Action]:
    """After the last local backward of microbatch m: its feature gradient is complete on this rank."""
    if not view.trains_extractor:
        return
    match view.extraction:
        case "sharded" if view.shares_features:
            yield Action(Do.START_SCATTER, m)
        case "root":
            yield Action(Do.START_REDUCE, m)
        case "replicated" if m >= lag:
            yield from extractor_backward(view, m - lag)


def extractor_backward(view: RankView, m: int, *, step: int = 0) -> Iterator[Action]:
    """One microbatch of this rank's share of the extractor's gradient."""
    if view.reduces_parameters and m == view.microbatches - 1:
        # Before the last backward: each bucket of gradients leaves as soon as this backward completes it.
        yield Action(Do.RELEASE_PARAMETER_GRADIENTS, step=step)
    yield Action(Do.EXTRACTOR_BACKWARD, m, step=step)


def _finish_extractor(view: RankView, *, lag: int) -> Iterator[Action]:
    """What is left of the extractor's gradient once all local backwards are done."""
    if not view.trains_extractor:
        return
    match view.extraction:
        case "elsewhere":
            return
        case "sharded":
            if view.shares_features:
                yield Action(Do.AWAIT_SCATTERS)
            if view.reduces_parameters:
                yield Action(Do.RELEASE_PARAMETER_GRADIENTS)
            yield Action(Do.EXTRACTOR_BACKWARD)
        case "root" if view.rank == 0:
            for m in range(view.microbatches):
                yield Action(Do.AWAIT_REDUCE, m)
                yield from extractor_backward(view, m)
        case "root":
            yield Action(Do.AWAIT_REDUCES_SENT)
        case "replicated":
            for m in range(max(0, view.microbatches - lag), view.microbatches):
                yield from extractor_backward(view, m)
    if view.reduces_parameters:
        yield Action(Do.AWAIT_PARAMETER_GRADIENTS)


def _close(view: RankView) -> Iterator[Action]:
    """Wait for what was sent, so that no message outlives its step."""
    if view.extraction == "root" and view.rank == 0:
        yield Action(Do.AWAIT_BROADCASTS_SENT)
    if view.next is not None:
        yield Action(Do.AWAIT_STATES_SENT)
