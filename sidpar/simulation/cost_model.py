"""Predicts how long a step takes, from the cost of each piece of the network and of each message. No torch.

The lists of actions are those that the engines execute; `simulator.py` runs them, here with measured or given costs.
The paper's own projection (appendix B.3) and the laws of the schedules are here too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from sidpar.schedules.actions import Action
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import Cut
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import RankView
from sidpar.schedules.streaming import unended_stream
from sidpar.simulation.action_costs import LocalPrices, PipelinePrices, Prices
from sidpar.simulation.activation_memory import Occupancy
from sidpar.simulation.costs import Costs
from sidpar.simulation.simulator import simulate
from sidpar.simulation.timeline import Timeline

DDP_BUCKET_BYTES = 25 * 2**20
"""torch's default."""


@dataclass(frozen=True)
class Prediction:
    """A modelled step."""

    seconds: float
    bubble: float
    """Share of the step in which a rank, on average, does not compute."""
    saved_bytes: list[float]
    """Peak of each rank's saved activations."""
    buffer_bytes: list[float]
    """Peak of each rank's buffers of messages under way."""
    timeline: Timeline | None = None


def predict_local(
    lists: Iterable[Iterable[Action]],
    placement: Placement,
    costs: Costs,
    layout: BatchLayout,
    steps: int = 1,
    *,
    keep_spans: bool = True,
) -> Prediction:
    """A step of local learning on ranks; or of a stream of several, its filling and its drain included. Of one replica,
    `layout` being that of its share."""
    timeline, held = _run(lists, LocalPrices(placement, costs, layout), keep_spans, _holders(placement))
    return Prediction(timeline.makespan / steps, timeline.bubble, *_peaks(held), timeline if keep_spans else None)


def predict_stream(
    views: Sequence[RankView], costs: Costs, layout: BatchLayout, staleness: int = 1, *, keep_spans: bool = False
) -> Prediction:
    """A step of a long stream that is under way: neither its filling nor its drain counts."""
    # A rank's turns repeat after every S + 1 of them, once the first as many, which see the filling, are over.
    repeat, placement = staleness + 1, views[0].placement
    lists = [unended_stream(view, staleness, 2 * repeat) for view in views]
    timeline, held = _run(lists, LocalPrices(placement, costs, layout), keep_spans, _holders(placement))
    times, work = ([begins[2 * repeat][k] - begins[repeat][k] for begins in timeline.begins] for k in (0, 1))
    bubble = 1 - sum(work) / (placement.num_ranks * times[-1]) if times[-1] else 0.0
    return Prediction(times[-1] / repeat, bubble, *_peaks(held), timeline if keep_spans else None)


def predict_pipeline(
    lists: Iterable[Iterable[Action]], costs: Costs, cut: Cut, rows: float, *, keep_spans: bool = True
) -> Prediction:
    """A step of a pipeline of backpropagation with microbatches of `rows` rows."""
    timeline, held = _run(lists, PipelinePrices(cut, costs, rows), keep_spans)
    return Prediction(timeline.makespan, timeline.bubble, *_peaks(held), timeline if keep_spans else None)


def predict_whole(
    costs: Costs, batch_size: int, *, num_ranks: int = 1, microbatches: int = 1, checkpointing: bool = False
) -> Prediction:
    """A step of backpropagation through the whole cascade on each rank's share of the batch: one process, or DDP, whose
    gradients travel in buckets, each as soon as the last backward has completed it."""
    layout = BatchLayout(batch_size, microbatches, num_ranks)
    rows, microbatches = layout.padded_part(0), len(layout.microbatches)
    pieces = [*costs.layers, *costs.refiners]
    # Measured for SID, whose extractor is one piece of work.
    overheads = [costs.overhead / len(costs.layers)] * len(costs.layers) + [costs.overhead] * len(costs.refiners)
    forward = sum(p.forward(rows) for p in pieces) + sum(overheads)
    again = sum(p.forward(rows) for p in costs.refiners) if checkpointing else 0.0
    backwards = [p.backward(rows) + overhead for p, overhead in zip(pieces, overheads, strict=True)]
    work = microbatches * (forward + again + sum(backwards))
    summed, bucket = 0.0, 0.0
    for k, done in zip(reversed(range(len(pieces))), accumulate(reversed(backwards)), strict=True):
        bucket += pieces[k].trained_bytes
        if num_ranks > 1 and (bucket >= DDP_BUCKET_BYTES or k == 0):
            summed, bucket = max(summed, done) + costs.links.all_reduce(bucket), 0.0
    seconds = work + max(0.0, summed - sum(backwards))
    saved = [p.saved(rows) for p in pieces]
    if checkpointing:
        inputs = rows * (costs.feature_bytes + sum(costs.state_bytes))
        saved = [*(p.saved(rows) for p in costs.layers), inputs, max(p.saved(rows) for p in costs.refiners)]
    bubble = 1 - work / seconds if seconds else 0.0
    return Prediction(seconds, bubble, [sum(saved)] * num_ranks, [0.0] * num_ranks)


def naive_seconds(costs: Costs, batch_size: int) -> float:
    """T_BP = T_fwd + T_bwd: every piece once, one after the other."""
    return sum(sum(loads) for loads in costs.loads(batch_size))


def paper_seconds(costs: Costs, batch_size: int, groups: Sequence[Sequence[int]]) -> float:
    """The paper's projection of a SID step (appendix B.3), communication ignored: T_teacher + T_extractor + max over
    processors. The last term counts the backwards alone of a processor's refiners, which gives the paper's 2.4 at
    K = 8. `groups[r]` are the refiners of rank r."""
    extractor = costs.extractor(batch_size)[0]
    teacher = extractor + sum(piece.forward(batch_size) for piece in costs.refiners)
    return teacher + extractor + max(sum(costs.refiners[i].backward(batch_size) for i in group) for group in groups)


def law_speedup(schedule: str, num_ranks: int, microbatches: int, extractor: str = "replicated") -> float | None:
    """The speed-up of a schedule over naive backpropagation by its law: for equal refiners whose backward takes twice
    as long as their forward, without extractor and messages. None where there is no law."""
    k, m = num_ranks, microbatches
    steps = {
        "ddp": 1.0,
        "naive": float(k),
        "gpipe": 1 + (k - 1) / m,
        "1f1b": 1 + (k - 1) / m,
        "interleaved": 1 + (k - 1) / (2 * m) if m % k == 0 else None,  # two sections per rank halve the bubble
        "zero_bubble": 1 + (k - 1) / (3 * m) if m >= k else None,  # with fewer it has nothing to fill bubbles with
        "fused": 1 + (k - 1) / (3 * m),
        "two_phase": 4 / 3 + (k - 1) / (3 * m),
        # A staleness of 1 has two steps' time for the chain; a sharded extractor's gathers come on top of it.
        "streaming": max(1.0, (1 + (k - 1) / (3 * m)) / 2) if extractor != "sharded" or 3 * m >= k + 4 else None,
    }.get(schedule)
    return None if steps is None else k / steps


def _run(
    lists: Iterable[Iterable[Action]], prices: Prices, keep_spans: bool, extractor_holders: int | None = None
) -> tuple[Timeline, list[Occupancy]]:
    """Simulate the lists, and count what each rank holds."""
    ranks = list(lists)
    held = [Occupancy(partial(prices.held, rank)) for rank in range(len(ranks))]
    watched = [occupancy.watch(mine) for occupancy, mine in zip(held, ranks, strict=True)]
    return simulate(watched, prices.seconds, keep_spans=keep_spans, extractor_holders=extractor_holders), held


def _holders(placement: Placement) -> int | None:
    """Ranks of a cascade that sum the extractor's parameter gradients; None for all."""
    return 1 if placement.extractor == "root" else None


def _peaks(held: Sequence[Occupancy]) -> tuple[list[float], list[float]]:
    saved = [occupancy.peaks["saved activations"] for occupancy in held]
    return saved, [occupancy.peaks["communication buffers"] for occupancy in held]
