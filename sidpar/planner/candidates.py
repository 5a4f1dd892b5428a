"""The candidates of a plan: for each way to train a cascade, the time of a step and the memory of each rank. No
torch."""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from sidpar.config.groups.choices import PipelineName, ScheduleName
from sidpar.planner.job import Job
from sidpar.schedules.actions import Do
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import PIPELINES, Cut
from sidpar.schedules.pipelines import Lists, Order, pipeline_lists
from sidpar.schedules.placement import Copies, Holding, Placement
from sidpar.schedules.rank_view import RankView, rank_views
from sidpar.schedules.streaming import unended_stream
from sidpar.schedules.synchronous import SCHEDULES
from sidpar.simulation.action_costs import LocalPrices, PipelinePrices, Prices
from sidpar.simulation.activation_memory import Occupancy
from sidpar.simulation.cost_model import Prediction, predict_local, predict_pipeline, predict_stream, predict_whole
from sidpar.simulation.costs import Costs, Piece
from sidpar.simulation.lower_bounds import local_bound, pipeline_bound
from sidpar.simulation.rank_memory import Footprint, footprint


class Message(NamedTuple):
    """Messages of one kind."""

    kind: str
    number: int
    """Messages per step, of the rank that sends most."""
    size: float
    """Bytes of the largest message; for a collective, of the whole buffer."""


class Candidate(ABC):
    """One way to train a cascade."""

    method: str
    rule: str | None = None
    """The local rule's name; None for backpropagation."""
    schedule: str
    microbatches: int
    """The number of microbatches M."""
    staleness = 0
    """The staleness S of a stream; 0 for other schedules."""
    learns_locally = False
    """Whether refiners learn by losses of their own."""

    @property
    @abstractmethod
    def holding(self) -> Holding:
        """Which rank holds which modules."""

    @abstractmethod
    def bound(self, job: Job) -> float:
        """A lower bound for the seconds of a step."""

    @abstractmethod
    def actions(self, job: Job) -> int:
        """About how many actions a prediction goes through."""

    @abstractmethod
    def predict(self, job: Job, *, keep_spans: bool = False) -> Prediction:
        """The prediction for a step."""

    @abstractmethod
    def peaks(self, job: Job, ranks: Iterable[int]) -> dict[int, tuple[float, float]]:
        """Saved activations and buffers of some ranks, in bytes, found without a clock; of none, if that takes long."""

    @abstractmethod
    def messages(self, job: Job) -> list[Message]:
        """What one rank sends in a step, or takes part in."""

    @property
    def row(self) -> str:
        """What candidates that differ in M alone have in common."""
        return f"{self.way} {self.schedule} {self.holding.extractor}"

    @property
    def way(self) -> str:
        """The rule or method of learning, for texts."""
        return self.rule or self.method

    def footprints(self, job: Job, peaks: Mapping[int, tuple[float, float]]) -> dict[int, Footprint]:
        """Of the ranks whose peaks are given."""
        return {
            rank: footprint(
                self._extractor(job.costs, rank),
                [job.costs.refiners[i] for i in self.holding.refiners(rank)],
                state_per_byte=job.state_per_byte,
                trains_extractor=job.trains_extractor or not self.learns_locally,
                versions=self.staleness + 1 if self.staleness else 0,
                saved_activations=saved,
                communication_buffers=buffers,
            )
            for rank, (saved, buffers) in peaks.items()
        }

    def _extractor(self, costs: Costs, rank: int) -> Sequence[Piece]:
        """The pieces of the extractor that a rank holds."""
        if isinstance(self.holding, Cut) and self.holding.extractor == "root":
            return costs.layers if self.holding.extractor_layers(rank, 1) else []
        return [costs.layers[k] for k in self.holding.extractor_layers(rank, len(costs.layers))]


@dataclass(frozen=True)
class LocalCandidate(Candidate):
    """Local learning on ranks."""

    schedule: ScheduleName
    placement: Placement
    microbatches: int
    staleness: int = 0
    rule: str = "sid"
    method = "sid"
    learns_locally = True

    @property
    def holding(self) -> Placement:
        return self.placement

    def bound(self, job: Job) -> float:
        return local_bound(self.schedule, self._views(job), job.times, self._layout(job), self.staleness)

    def actions(self, job: Job) -> int:
        return self._turns * self.microbatches * (4 * self.placement.num_ranks + 2 * self.placement.num_refiners)

    def predict(self, job: Job, *, keep_spans: bool = False) -> Prediction:
        if self.schedule == "streaming":
            views, layout = self._views(job), self._layout(job)
            return predict_stream(views, job.costs, layout, self.staleness, keep_spans=keep_spans)
        return predict_local(self._lists(job), self.placement, job.costs, self._layout(job), keep_spans=keep_spans)

    def peaks(self, job: Job, ranks: Iterable[int]) -> dict[int, tuple[float, float]]:
        return _peaks(self._lists(job), LocalPrices(self.placement, job.costs, self._layout(job)), ranks)

    def messages(self, job: Job) -> list[Message]:
        view, layout = self._views(job)[0], self._layout(job)
        prices = LocalPrices(self.placement, job.costs, layout)
        m, rows, ranks = len(layout.microbatches), len(layout.microbatches[0]), range(self.placement.num_ranks)
        found = []
        if len(ranks) > 1 and view.passes_states:
            size = max(prices.message_bytes(Do.SEND_STATE, rows, rank) for rank in ranks[:-1])
            found.append(Message("state", m, size))
        if view.shares_features:
            sharded = self.placement.extractor == "sharded"
            features, gradient = (
                (Do.START_GATHER, Do.START_SCATTER) if sharded else (Do.START_BROADCAST, Do.START_REDUCE)
            )
            found.append(Message("features", 1 if sharded else m, prices.message_bytes(features, rows, 0)))
            if view.trains_extractor:
                found.append(Message("feature gradient", m, prices.message_bytes(gradient, rows, 0)))
        if view.reduces_parameters:
            found.append(Message("extractor's gradient", 1, job.costs.extractor_parameter_bytes))
        if view.reduces_refiners:
            sums = [prices.message_bytes(Do.RELEASE_REFINER_GRADIENTS, rows, rank) for rank in ranks]
            found.append(Message("refiners' gradients", 1, max(sums)))
        return found

    @property
    def _turns(self) -> int:
        """As many as `predict_stream` goes through."""
        return 2 * (self.staleness + 1) if self.schedule == "streaming" else 1

    def _lists(self, job: Job) -> Lists:
        if self.schedule == "streaming":
            return [unended_stream(view, self.staleness, self._turns) for view in self._views(job)]
        return [SCHEDULES[self.schedule](view) for view in self._views(job)]

    def _views(self, job: Job) -> list[RankView]:
        m = job.share.microbatches(self.microbatches)
        return rank_views(
            self.placement,
            m,
            trains_extractor=job.trains_extractor,
            replicas=job.num_replicas,
            refiner_execution=job.refiner_execution,
            passes_states=job.passes_states,
            reads=job.reads,
        )

    def _layout(self, job: Job) -> BatchLayout:
        m = job.share.microbatches(self.microbatches)
        return BatchLayout(len(job.share.taken), m, self.placement.num_ranks, job.copies)


@dataclass(frozen=True)
class PipelineCandidate(Candidate):
    """Backpropagation through a pipeline of sections."""

    schedule: PipelineName
    cut: Cut
    microbatches: int
    order: Order | None = None
    method = "bp"

    @property
    def holding(self) -> Cut:
        return self.cut

    def bound(self, job: Job) -> float:
        return pipeline_bound(self.schedule, self.cut, job.costs, self._rows(job), self.microbatches)

    def actions(self, job: Job) -> int:
        actions = 6 * self.microbatches * self.cut.num_sections
        return actions if self._written_out else actions * self.cut.num_ranks  # torch goes through all ranks for each

    def predict(self, job: Job, *, keep_spans: bool = False) -> Prediction:
        return predict_pipeline(self._lists(), job.costs, self.cut, self._rows(job), keep_spans=keep_spans)

    def peaks(self, job: Job, ranks: Iterable[int]) -> dict[int, tuple[float, float]]:
        if not self._written_out:
            return {}
        return _peaks(self._lists(), PipelinePrices(self.cut, job.costs, self._rows(job)), ranks)

    def messages(self, job: Job) -> list[Message]:
        prices, cut = PipelinePrices(self.cut, job.costs, self._rows(job)), self.cut
        seams = [s for s in range(1, cut.num_sections) if cut.rank_of(s) != cut.rank_of(s - 1)]
        size = max((prices.message_bytes(section) for section in seams), default=0.0)
        count = self.microbatches * max(Counter(cut.rank_of(section - 1) for section in seams).values(), default=0)
        return [Message("activation", count, size), Message("activation gradient", count, size)] if seams else []

    @property
    def _written_out(self) -> bool:
        return PIPELINES[self.schedule].sections_per_rank == 1

    def _lists(self) -> Lists:
        return pipeline_lists(self.schedule, self.cut, self.microbatches, self.order)

    def _rows(self, job: Job) -> int:
        return -(-job.batch_size // self.microbatches)


@dataclass(frozen=True)
class WholeCandidate(Candidate):
    """Backpropagation through the whole cascade, on each rank's share of the batch."""

    method: str
    schedule: str
    """ddp, or one device; followed by `, checkpointing` where activations are made twice."""
    copies: Copies
    microbatches: int = 1

    @property
    def holding(self) -> Copies:
        return self.copies

    def bound(self, job: Job) -> float:
        return self.predict(job).seconds

    def actions(self, job: Job) -> int:
        return 0

    def predict(self, job: Job, *, keep_spans: bool = False) -> Prediction:
        return predict_whole(
            job.costs,
            job.batch_size,
            num_ranks=self.copies.num_ranks,
            microbatches=self.microbatches,
            checkpointing="checkpointing" in self.schedule,
        )

    def messages(self, job: Job) -> list[Message]:
        return [Message("gradients", 1, job.costs.parameter_bytes)] if self.copies.num_ranks > 1 else []

    def footprints(self, job: Job, peaks: Mapping[int, tuple[float, float]]) -> dict[int, Footprint]:
        alike = super().footprints(job, {0: peaks[0]})[0]
        return dict.fromkeys(peaks, alike)

    def peaks(self, job: Job, ranks: Iterable[int]) -> dict[int, tuple[float, float]]:
        saved = self.predict(job).saved_bytes
        return {rank: (saved[rank], 0.0) for rank in ranks}


def _peaks(lists: Lists, prices: Prices, ranks: Iterable[int]) -> dict[int, tuple[float, float]]:
    found = {}
    for rank in ranks:
        occupancy = Occupancy(partial(prices.held, rank))
        deque(occupancy.watch(lists[rank]), maxlen=0)  # to its end
        found[rank] = occupancy.peaks["saved activations"], occupancy.peaks["communication buffers"]
    return found
