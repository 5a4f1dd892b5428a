"""Times that no step can undercut, found without simulating it: the laws, with real costs. No torch.

A rank cannot start before the first belief has reached it. Then it does all of its own work, and then what is left of
the extractor's gradient. If all ranks are alike, a step takes exactly that long, so a plan for many ranks has to
simulate few schedules.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate
from typing import Literal

from sidpar.config.groups.choices import PipelineName, ScheduleName
from sidpar.schedules.actions import Action, Do
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import PIPELINES, Cut
from sidpar.schedules.rank_view import RankView
from sidpar.schedules.streaming import extractor_slots
from sidpar.simulation.action_costs import LocalPrices, PipelinePrices
from sidpar.simulation.costs import Costs

Way = Literal["forward", "backward"]


class Times:
    """Costs, with the sums over runs of refiners found once for each number of rows."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        self._sums = cache(self._find_sums)

    def refiners(self, way: Way, rows: int, run: range) -> float:
        """Seconds that a run of refiners takes for `rows` rows."""
        sums = self._sums(way, rows)
        return sums[run.stop] - sums[run.start]

    def _find_sums(self, way: Way, rows: int) -> list[float]:
        each = (getattr(piece, way)(rows) + self.costs.overhead for piece in self.costs.refiners)
        return [0.0, *accumulate(each)]


def local_bound(
    schedule: ScheduleName, views: Sequence[RankView], times: Times, layout: BatchLayout, staleness: int = 1
) -> float:
    """Of a step of local learning; of a stream, once it is under way. `views` are those of all ranks."""
    return _LocalBound(schedule, views, times, layout).seconds(staleness)


class _LocalBound:
    """Letters as in `schedules/synchronous.py`: r rank, m microbatch."""

    def __init__(self, schedule: ScheduleName, views: Sequence[RankView], times: Times, layout: BatchLayout) -> None:
        self._schedule, self._views, self._view = schedule, views, views[0]
        self._extractor, self._times = views[0].extraction, times
        self._prices = LocalPrices(views[0].placement, times.costs, layout)
        self._sizes = [len(rows) for rows in layout.microbatches]
        self._ranks, self._last = range(len(views)), len(layout.microbatches) - 1
        self._large = self._sizes.count(self._sizes[0])
        self._chained = self._view.passes_states
        self._learning = [self._every(partial(self._learn, r)) for r in self._ranks]
        self._begins = self._find_begins()

    def _find_begins(self) -> list[float]:
        """When each rank can begin to refine."""
        features = self._features()
        if self._chained:
            hops = (self._forward(r, 0) + self._of(Do.SEND_STATE, r, 0) for r in self._ranks[:-1])
            return list(accumulate([features, *hops]))
        if self._extractor == "root":  # which extracts and sends one microbatch after the other, before it refines
            first = self._of(Do.EXTRACT, 0, 0) + self._of(Do.START_BROADCAST, 0, 0)
            return [features, *(first for _ in self._ranks[1:])]
        return [0.0 if view.extraction == "elsewhere" else features for view in self._views]

    def seconds(self, staleness: int) -> float:
        view, streams = self._view, self._schedule == "streaming"
        busiest = max(self._learning[r] + self._extracting(r) for r in self._ranks)
        ends = [begin + learning for begin, learning in zip(self._begins, self._learning, strict=True)]
        # The extractor's gradient waits for all ranks, or, where its features stay on the first one, for that alone.
        complete = (ends[0] if self._views[-1].extraction == "elsewhere" else max(ends)) + self._tail()
        if not streams:
            return max(busiest, *ends, complete)
        sends = [self._every(partial(self._of, Do.SEND_STATE, r)) for r in self._ranks[:-1] if self._chained]
        # Features know all updates but the last S, and an update waits for the last rank.
        updates = complete / (staleness + 1) if view.trains_extractor else 0.0
        return max(busiest, updates, *sends, self._slots())

    def _of(self, do: Do, r: int, m: int | None = None) -> float:
        return self._prices.seconds(r, Action(do, m))

    def _every(self, one: Callable[[int], float]) -> float:
        """Summed over the microbatches, of which there are two sizes at most, the larger first."""
        return self._large * one(0) + (self._last + 1 - self._large) * one(self._last)

    def _forward(self, r: int, m: int) -> float:
        return self._times.refiners("forward", self._sizes[m], self._views[r].refiners)

    def _learn(self, r: int, m: int) -> float:
        """All forwards and backwards of one rank's refiners, teacher passes included."""
        forward, refiners = self._forward(r, m), self._views[r].refiners
        if self._view.refiner_execution == "stacked":
            return self._of(Do.LEARN, r, m) + (forward if self._chained else 0.0)
        backward = self._times.refiners("backward", self._sizes[m], refiners)
        return forward + backward + (forward if self._has_two_phases else 0.0)

    @property
    def _has_two_phases(self) -> bool:
        return self._schedule == "two_phase" and self._chained

    def _extract(self, do: Do, r: int) -> float:
        """Of the whole batch, as much of it as is this rank's."""
        if not self._view.placement.holds_extractor(r):
            return 0.0
        return self._of(do, r) if self._extractor == "sharded" else self._every(partial(self._of, do, r))

    def _extracting(self, r: int) -> float:
        """All of a rank's work for the extractor."""
        if not self._view.trains_extractor:
            return self._extract(Do.EXTRACT, r)
        forwards = 2 if self._has_two_phases else 1
        return forwards * self._extract(Do.EXTRACT, r) + self._extract(Do.EXTRACTOR_BACKWARD, r)

    def _features(self) -> float:
        """What the first refiner waits for."""
        if self._extractor == "replicated":
            return self._of(Do.EXTRACT, 0, 0)
        return max(self._extract(Do.EXTRACT, r) for r in self._ranks) + self._gather()

    def _gather(self) -> float:
        gathers = self._extractor == "sharded" and self._view.shares_features
        return self._of(Do.START_GATHER, 0) if gathers else 0.0

    def _tail(self) -> float:
        """From a last local backward on, until the extractor's gradient is complete."""
        if not self._view.trains_extractor:
            return 0.0
        start = {"sharded": Do.START_SCATTER, "root": Do.START_REDUCE}.get(self._extractor)
        message = self._of(start, 0, self._last) if start is not None and self._view.shares_features else 0.0
        total = self._of(Do.RELEASE_PARAMETER_GRADIENTS, 0) if self._view.reduces_parameters else 0.0
        if self._extractor == "sharded":
            return message + max(self._of(Do.EXTRACTOR_BACKWARD, r) for r in self._ranks) + total
        return message + self._of(Do.EXTRACTOR_BACKWARD, 0, self._last) + total

    def _slots(self) -> float:
        """How long a sharded stream takes to come to where every rank has extracted its share of the next batch."""
        if self._extractor != "sharded" or not self._view.shares_features:
            return 0.0
        extracted = [
            begin - self._begins[0] + extractor_slots(view)[1] * self._learn(r, self._last) + self._of(Do.EXTRACT, r)
            for r, (begin, view) in enumerate(zip(self._begins, self._views, strict=True))
        ]
        return max(extracted) + self._gather()


def pipeline_bound(schedule: PipelineName, cut: Cut, costs: Costs, rows: float, microbatches: int) -> float:
    """Of a step of a pipeline of backpropagation: the first microbatch must come to a rank, which then has all of its
    own work; where backwards are whole, the last microbatch's gradient still goes back to the first rank."""
    prices = PipelinePrices(cut, costs, rows)
    sections = range(cut.num_sections)
    forwards, backwards = (
        [prices.seconds(0, Action(do, section=s)) for s in sections] for do in (Do.SECTION_FORWARD, Do.SECTION_BACKWARD)
    )
    there = [prices.seconds(0, Action(Do.SEND_ACTIVATION, section=s)) for s in sections[1:]]
    arrivals = list(accumulate([0.0, *(f + message for f, message in zip(forwards, there, strict=False))]))
    returns = list(accumulate([0.0, *(b + message for b, message in zip(backwards, there, strict=False))]))
    simple = PIPELINES[schedule].sections_per_rank == 1
    times = []
    for rank in range(cut.num_ranks):
        own = cut.sections(rank)
        work = microbatches * sum(forwards[s] + backwards[s] for s in own)
        times.append(arrivals[own[0]] + work + (returns[own[0]] if simple else 0.0))
    return max(times)
