"""The schedule without a flush: consecutive batches overlap. Pure data, as `synchronous.py`.

`streaming`, K = 3, two batches of M = 2, one refiner per rank (2 and 3 are the second batch's microbatches):

    rank 0   F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3
    rank 1      F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3
    rank 2         F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3

A rank's *turn* at a batch is `fused`, and in between whatever falls due of other batches, so that no rank waits for
the ranks behind it. Refiners update at the end of each turn, from the exact gradient of their own loss. The extractor's
gradient of a batch is complete only when the last rank has contributed, K-1 hops after the first rank's turn; its
update is applied in the turn that comes S = `staleness` turns later. So the features of a batch know all updates of the
extractor but those of the S batches before it: the same for every placement of the extractor and every K.

How each placement does it:

- `sharded`: the features of the next batch are extracted and gathered within this turn, since the first rank needs the
  last one's share of them. They need the update first, and that the last rank's gradients. So on rank r the extractor's
  work comes K-1-r hops into the turn: all ranks do it at about the same time, as soon as it is possible. To the whole
  microbatch, which is why hiding the chain takes M >= (K+4)/3 here, and elsewhere (K-1)/3.
- `root`: rank 0 ends its turn with the extractor's backward and update; the others post broadcasts a batch ahead, since
  a broadcast may have to wait for the last rank to join in.
- `replicated`: each rank runs the extractor's backward per microbatch; the sum over ranks is under way until the end of
  the turn S turns later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import RankView, rank_views
from sidpar.schedules.synchronous import (
    await_refiners,
    broadcast,
    extract_ahead,
    extract_shard,
    extractor_backward,
    learn,
    receive,
    return_feature_gradient,
)

HOPS_PER_MICROBATCH = 3
"""While a rank works on one microbatch (a forward and a backward of twice its length), beliefs take three hops."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a batch stands in its stream, a run of batches of one shape."""

    staleness: int
    """S >= 1: how many steps late the extractor's updates are."""
    before: int
    """How many batches of the stream come before this one."""
    last: bool
    """Whether no batch of the stream follows."""

    @property
    def update_is_due(self) -> bool:
        return self.before >= self.staleness

    @property
    def outstanding(self) -> range:
        """The batches whose extractor update is still to come after this turn, counted from this one's: ..., -1, 0."""
        return range(1 - min(self.staleness, self.before + 1), 1)


def streaming(view: RankView, turn: Turn) -> Iterator[Action]:
    """One rank's turn at a batch (step 0)."""
    yield from _open(view, turn)
    backward_after, extract_after = extractor_slots(view)
    for m in range(view.microbatches):
        if m == backward_after:
            yield from _sharded_backward(view, turn)
        if m == extract_after:
            yield from _sharded_update(view, turn)
        yield from receive(view, m)
        last = m == view.microbatches - 1
        if last and extract_after <= m:
            yield from _post_ahead(view, turn)
        yield from learn(view, m)
        yield from return_feature_gradient(view, m, lag=0)
        yield from extract_ahead(view, m, graph=view.runs_extractor_backward, lookahead=1)
    yield from await_refiners(view)
    yield Action(Do.UPDATE_REFINERS)
    if backward_after >= view.microbatches:
        yield from _sharded_backward(view, turn)
    if extract_after >= view.microbatches:
        yield from _sharded_update(view, turn)
        yield from _post_ahead(view, turn)
    if view.extraction != "sharded" and turn.update_is_due:
        yield from _finish(view, -turn.staleness)
    if turn.before > 0:
        yield from _close(view, -1)


def drain(view: RankView, turn: Turn) -> Iterator[Action]:
    """After the last turn of a stream: the updates still to come, one after the other. Then nothing is in flight, all
    ranks' extractors are equal, and a checkpoint can be taken."""
    for step in turn.outstanding:
        yield from _finish(view, step)
    yield from _close(view, 0)


def stream(view: RankView, staleness: int, steps: int) -> Iterator[Action]:
    """A whole stream of `steps` batches, drained at its end; each action's `step` counts from the first batch."""
    turn = Turn(staleness, 0, True)
    for step in range(steps):
        turn = Turn(staleness, step, step == steps - 1)
        for action in streaming(view, turn):
            yield action._replace(step=action.step + step)
    for action in drain(view, turn):
        yield action._replace(step=action.step + steps - 1)


def unended_stream(view: RankView, staleness: int, steps: int) -> Iterator[Action]:
    """The first `steps` turns of a stream that goes on, and the next turn up to its first backward."""
    for step in range(steps + 1):
        for do, m, i, peer, graph, section, before in streaming(view, Turn(staleness, step, last=False)):
            if step == steps and do in (Do.BACKWARD, Do.LEARN):
                return
            yield Action(do, m, i, peer, graph, section, before + step)


def all_streams(
    placement: Placement,
    microbatches: int,
    staleness: int,
    steps: int,
    **declared: Any,
) -> list[list[Action]]:
    """The lists of all ranks of a cascade for a whole stream; `declared` as for `rank_views`."""
    views = rank_views(placement, microbatches, **declared)
    return [list(stream(view, staleness, steps)) for view in views]


def _open(view: RankView, turn: Turn) -> Iterator[Action]:
    """The features of this batch, and the first receive where no turn before has posted it."""
    first, graph = turn.before == 0, view.runs_extractor_backward
    match view.extraction:
        case "sharded":
            if first:
                yield from extract_shard(view, graph=graph)
            if view.shares_features:
                yield Action(Do.AWAIT_GATHER)
        case "root":
            if first or view.rank == 0:
                yield from broadcast(view, graph=graph)
            if view.rank > 0 and not turn.last:
                yield from broadcast(view, graph=False, step=1)
        case "replicated":
            yield Action(Do.EXTRACT, 0, graph=graph)
    if first and view.previous is not None:
        yield Action(Do.POST_STATE, 0, peer=view.previous)


def _post_ahead(view: RankView, turn: Turn) -> Iterator[Action]:
    """The receive of the next batch's first state."""
    if view.previous is not None and not turn.last:
        yield Action(Do.POST_STATE, 0, peer=view.previous, step=1)


def extractor_slots(view: RankView) -> tuple[int, int]:
    """After how many microbatches of its turn a rank does a sharded extractor's backward for a batch before, and its
    forward for the next one. In between, the parameter gradients travel behind one microbatch's work."""
    if view.extraction != "sharded":
        return -1, -1
    backward_after = -(-view.hops_behind // HOPS_PER_MICROBATCH)
    return min(backward_after, view.microbatches), min(backward_after + 1, view.microbatches)


def _sharded_backward(view: RankView, turn: Turn) -> Iterator[Action]:
    if turn.update_is_due and view.trains_extractor:
        yield from _backward(view, -turn.staleness)


def _sharded_update(view: RankView, turn: Turn) -> Iterator[Action]:
    if turn.update_is_due and view.trains_extractor:
        yield from _update(view, -turn.staleness)
    if not turn.last:
        yield from extract_shard(view, graph=view.runs_extractor_backward, step=1)


def _finish(view: RankView, step: int) -> Iterator[Action]:
    """The extractor's gradient of a batch whose local backwards are done on all ranks, or will be, and its update."""
    if not view.trains_extractor or view.extraction == "elsewhere":
        return
    if view.extraction == "root" and view.rank > 0:
        yield Action(Do.AWAIT_REDUCES_SENT, step=step)
        return
    if view.extraction != "replicated":  # which has done it in the batch's own turn
        yield from _backward(view, step)
    yield from _update(view, step)


def _backward(view: RankView, step: int) -> Iterator[Action]:
    if view.extraction == "root":
        for m in range(view.microbatches):
            yield Action(Do.AWAIT_REDUCE, m, step=step)
            yield from extractor_backward(view, m, step=step)
        return
    if view.shares_features:
        yield Action(Do.AWAIT_SCATTERS, step=step)
    if view.reduces_parameters:
        yield Action(Do.RELEASE_PARAMETER_GRADIENTS, step=step)
    yield Action(Do.EXTRACTOR_BACKWARD, step=step)


def _update(view: RankView, step: int) -> Iterator[Action]:
    if view.reduces_parameters:
        yield Action(Do.AWAIT_PARAMETER_GRADIENTS, step=step)
    yield Action(Do.UPDATE_EXTRACTOR, step=step)


def _close(view: RankView, step: int) -> Iterator[Action]:
    """What this rank sent of a batch has arrived, so that its buffers can go."""
    if view.extraction == "root" and view.rank == 0:
        yield Action(Do.AWAIT_BROADCASTS_SENT, step=step)
    if view.next is not None:
        yield Action(Do.AWAIT_STATES_SENT, step=step)
