"""What a step should take, and why: schedules timed from the cost of each piece and of each message. No torch.

The lists of actions are those that the engines execute; `simulator.py` runs them, here with measured or given costs.
The paper's own projection (appendix B.3) and the laws of DESIGN section 5 stand beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sidpar.actions import Action, Do
from sidpar.batching import BatchLayout
from sidpar.cut import Cut
from sidpar.phases import COMPUTE, PHASE
from sidpar.simulator import Lists, Timeline, simulate

INPUT_SHARE = 0.5
"""Share of a piece's backward that computes the gradient of its input, the rest that of its weights."""


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of rows: linear between measured sizes, in proportion outside of them."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        if rows <= 0:
            return 0.0
        if rows < self.rows[0] or rows > self.rows[-1]:
            end = 0 if rows < self.rows[0] else -1
            return self.seconds[end] * rows / self.rows[end]
        return float(np.interp(rows, self.rows, self.seconds))


@dataclass(frozen=True)
class Piece:
    """A layer of the extractor, or a refiner."""

    forward: Curve
    backward: Curve
    saved_bytes: float = 0.0
    """Bytes that autograd saves per row, until the backward."""


@dataclass(frozen=True)
class Link:
    """Seconds = latency + bytes * seconds_per_byte."""

    latency: float = 0.0
    seconds_per_byte: float = 0.0

    def __call__(self, size: float) -> float:
        return self.latency + size * self.seconds_per_byte


def fit_link(sizes: Sequence[float], seconds: Sequence[float]) -> Link:
    """Latency and bandwidth from measured messages, by weighted least squares: relative errors count, or the largest
    size would decide the latency. Neither is negative."""
    weights = 1 / np.array(seconds)
    design = np.stack([np.ones(len(sizes)), np.array(sizes)], axis=1) * weights[:, None]
    latency, slope = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)[0]
    return Link(max(0.0, float(latency)), max(0.0, float(slope)))


@dataclass(frozen=True)
class Links:
    """One link per kind of message; of a collective, `size` is the whole buffer, on the number of ranks measured."""

    message: Link = Link()
    all_gather: Link = Link()
    reduce_scatter: Link = Link()
    broadcast: Link = Link()
    reduce: Link = Link()
    all_reduce: Link = Link()


def ring_links(latency: float, bandwidth: float, num_ranks: int) -> Links:
    """Links of K ranks that are all alike, from seconds per message and bytes per second: collectives go round a ring
    of K - 1 hops, an all-reduce twice."""
    hops, share = num_ranks - 1, (num_ranks - 1) / num_ranks
    around = Link(hops * latency, share / bandwidth)
    to_one = Link(hops * latency, 1 / bandwidth)
    twice = Link(2 * hops * latency, 2 * share / bandwidth)
    return Links(Link(latency, 1 / bandwidth), around, around, to_one, to_one, twice)


@dataclass(frozen=True)
class Costs:
    """Everything that a prediction is made from."""

    layers: Sequence[Piece]
    """The extractor's layers; one piece for all of it, if it cannot be taken apart."""
    refiners: Sequence[Piece]
    links: Links = field(default_factory=Links)
    feature_bytes: float = 0.0
    """Per row, as all of the following."""
    state_bytes: Sequence[float] = ()
    """`state_bytes[i]`: of what refiner i receives."""
    layer_bytes: Sequence[float] = ()
    """What each layer of the extractor returns."""
    extractor_parameter_bytes: float = 0.0
    """Once and for all, as the next two."""
    refiner_parameter_bytes: Sequence[float] = ()
    parameter_bytes: float = 0.0
    overhead: float = 0.0
    """Seconds that the engine itself adds to every piece of work: losses, bookkeeping, the start of messages."""

    def extractor(self, rows: float) -> tuple[float, float]:
        """Forward and backward of the whole extractor."""
        return sum(p.forward(rows) for p in self.layers), sum(p.backward(rows) for p in self.layers)

    def loads(self, rows: float) -> tuple[list[float], list[float]]:
        """Forward and backward together, of each layer and of each refiner: what placements share out."""
        layers, refiners = ([p.forward(rows) + p.backward(rows) for p in ps] for ps in (self.layers, self.refiners))
        return layers, refiners


@dataclass(frozen=True)
class Prediction:
    """A modelled step."""

    seconds: float
    """Of a step; of a stream, its length divided by its steps, the filling and the draining included."""
    bubble: float
    saved_bytes: list[float]
    """Peak of each rank's saved activations."""
    timeline: Timeline | None = None


def predict_sid(lists: Lists, costs: Costs, layout: BatchLayout, steps: int = 1) -> Prediction:
    """A step of the SID engine, or a stream of several; of one replica, `layout` being that of its share."""
    sizes = [len(rows) for rows in layout.microbatches]

    def rows(rank: int, action: Action) -> int:
        return len(layout.shards[rank]) if action.microbatch is None else sizes[action.microbatch]

    def seconds(rank: int, action: Action) -> float:
        return work(rank, action) + (costs.overhead if PHASE[action.do] in COMPUTE else 0.0)

    def work(rank: int, action: Action) -> float:
        b, links = rows(rank, action), costs.links
        match action.do:
            case Do.EXTRACT:
                return costs.extractor(b)[0]
            case Do.EXTRACTOR_BACKWARD:
                return costs.extractor(b)[1]
            case Do.FORWARD:
                return costs.refiners[_known(action.refiner)].forward(b)
            case Do.BACKWARD:
                return costs.refiners[_known(action.refiner)].backward(b)
            case Do.LEARN:
                return sum(costs.refiners[i].forward(b) + costs.refiners[i].backward(b) for i in own[rank])
            case Do.SEND_STATE:
                return links.message(b * costs.state_bytes[own[rank + 1][0]])
            case Do.START_GATHER:
                return links.all_gather(layout.batch_size * costs.feature_bytes)
            case Do.START_BROADCAST:
                return links.broadcast(b * costs.feature_bytes)
            case Do.START_SCATTER:
                return links.reduce_scatter(b * costs.feature_bytes)
            case Do.START_REDUCE:
                return links.reduce(b * costs.feature_bytes)
            case Do.RELEASE_PARAMETER_GRADIENTS:
                return links.all_reduce(costs.extractor_parameter_bytes)
            case Do.RELEASE_REFINER_GRADIENTS:
                refiners = own[rank] if action.refiner is None else [action.refiner]
                return links.all_reduce(sum(costs.refiner_parameter_bytes[i] for i in refiners))
        return 0.0

    def saved(rank: int, action: Action) -> tuple[object, float]:
        refiners = own[rank] if action.do is Do.LEARN else [] if action.refiner is None else [action.refiner]
        pieces = [costs.refiners[i] for i in refiners] or costs.layers
        return (action.step, action.refiner, action.microbatch), rows(rank, action) * sum(p.saved_bytes for p in pieces)

    own = [sorted({_known(a.refiner) for a in mine if a.do is Do.FORWARD}) for mine in lists]
    timeline = simulate(lists, seconds)
    begins, ends = (Do.EXTRACT, Do.FORWARD), (Do.EXTRACTOR_BACKWARD, Do.BACKWARD, Do.LEARN)
    peaks = [_peak(mine, partial(saved, rank), begins, ends) for rank, mine in enumerate(lists)]
    return Prediction(timeline.makespan / steps, timeline.bubble, peaks, timeline)


def predict_pipeline(lists: Lists, costs: Costs, cut: Cut, rows: float) -> Prediction:
    """A step of a pipeline of backpropagation with microbatches of `rows` rows."""
    pieces = _sections(costs, cut)

    def seconds(rank: int, action: Action) -> float:
        return work(action) + (costs.overhead if PHASE[action.do] in COMPUTE else 0.0)

    def work(action: Action) -> float:
        section = _known(action.section)
        backward = sum(piece.backward(rows) for piece in pieces[section])
        match action.do:
            case Do.SECTION_FORWARD:
                return sum(piece.forward(rows) for piece in pieces[section])
            case Do.SECTION_BACKWARD:
                return backward
            # The first section has no input to differentiate: torch leaves its whole backward to the second half.
            case Do.SECTION_INPUT_BACKWARD:
                return INPUT_SHARE * backward if section > 0 else 0.0
            case Do.SECTION_WEIGHT_BACKWARD:
                return (1 - INPUT_SHARE) * backward if section > 0 else backward
            case Do.SEND_ACTIVATION:
                return costs.links.message(rows * _seam_bytes(costs, cut, section))
            case Do.SEND_ACTIVATION_GRADIENT:
                return costs.links.message(rows * _seam_bytes(costs, cut, section + 1))
        return 0.0

    def saved(action: Action) -> tuple[object, float]:
        section = _known(action.section)
        return (section, action.microbatch), rows * sum(piece.saved_bytes for piece in pieces[section])

    timeline = simulate(lists, seconds)
    ends = (Do.SECTION_BACKWARD, Do.SECTION_WEIGHT_BACKWARD)
    peaks = [_peak(mine, saved, (Do.SECTION_FORWARD,), ends) for mine in lists]
    return Prediction(timeline.makespan, timeline.bubble, peaks, timeline)


def predict_whole(
    costs: Costs, batch_size: int, *, num_ranks: int = 1, microbatches: int = 1, checkpointing: bool = False
) -> Prediction:
    """A step of backpropagation through the whole cascade on each rank's share of the batch: one process, or DDP, whose
    gradients travel after the last backward (in fact during it: an upper bound)."""
    rows = batch_size / num_ranks / microbatches
    pieces = [*costs.layers, *costs.refiners]
    forward = sum(p.forward(rows) for p in pieces)
    again = sum(p.forward(rows) for p in costs.refiners) if checkpointing else 0.0
    work = microbatches * (forward + again + sum(p.backward(rows) for p in pieces) + 2 * len(pieces) * costs.overhead)
    seconds = work + (costs.links.all_reduce(costs.parameter_bytes) if num_ranks > 1 else 0.0)
    saved = [p.saved_bytes for p in pieces]
    if checkpointing:
        inputs = costs.feature_bytes + sum(costs.state_bytes)
        saved = [*(p.saved_bytes for p in costs.layers), inputs, max(p.saved_bytes for p in costs.refiners)]
    return Prediction(seconds, 1 - work / seconds if seconds else 0.0, [rows * sum(saved)] * num_ranks)


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


def law_speedup(method: str, schedule: str, num_ranks: int, microbatches: int) -> float | None:
    """The speed-up over naive backpropagation by the laws of DESIGN section 5: equal refiners whose backward takes
    twice their forward, extractor and messages left out. None where there is no law."""
    k, m = num_ranks, microbatches
    if method == "ddp":
        return float(k)
    steps = {
        "naive": float(k),
        "gpipe": 1 + (k - 1) / m,
        "1f1b": 1 + (k - 1) / m,
        "interleaved": 1 + (k - 1) / (2 * m) if m % k == 0 else None,  # two sections per rank halve the bubble
        "zero_bubble": 1 + (k - 1) / (3 * m) if m >= k else None,  # with fewer it has nothing to fill bubbles with
        "fused": 1 + (k - 1) / (3 * m),
        "two_phase": 4 / 3 + (k - 1) / (3 * m),
        "streaming": max(1.0, (1 + (k - 1) / (3 * m)) / 2),  # a staleness of 1 has two steps' time for the chain
    }.get(schedule)
    return None if steps is None else k / steps


def _peak(
    actions: list[Action],
    saved: Callable[[Action], tuple[object, float]],
    begin: Sequence[Do],
    end: Sequence[Do],
) -> float:
    """The most bytes alive at any time of a rank's list: what an action in `begin` saves lives until its `end`."""
    alive: dict[object, float] = {}
    peak = 0.0
    for action in actions:
        if action.do not in (*begin, *end):
            continue
        key, size = saved(action)
        if action.do in end:
            freed = alive.pop(key, size)  # where one action makes and uses it up, it is alive for that long
            peak = max(peak, freed + sum(alive.values()))
        elif action.graph or action.section is not None:
            alive[key] = size
        peak = max(peak, sum(alive.values()))
    return peak


def _sections(costs: Costs, cut: Cut) -> list[list[Piece]]:
    """The pieces of each section."""
    sections = []
    for s in range(cut.num_sections):
        own = cut.layers_of(s)
        layers = [costs.layers[k] for k in own] if cut.extractor == "cut" else list(costs.layers) if own else []
        sections.append([*layers, *(costs.refiners[i] for i in cut.refiners_of(s))])
    return sections


def _seam_bytes(costs: Costs, cut: Cut, section: int) -> float:
    """Per row, what enters a section."""
    layers, refiners = cut.layers_of(section - 1), cut.refiners_of(section - 1)
    if layers and layers.stop < cut.num_layers:
        return costs.layer_bytes[layers.stop - 1]
    return costs.feature_bytes + (costs.state_bytes[refiners.stop] if refiners else 0.0)


def _known(number: int | None) -> int:
    assert number is not None
    return number
