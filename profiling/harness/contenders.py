"""The methods that are compared: how each is built, what its law and its model predict."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from harness.workloads import Workload
from sidpar import BPEngine, Cascade, Objective, ParallelEngine, PipelineEngine, Runtime, Stage, StreamingEngine
from sidpar.engines.base import Engine
from sidpar.planner.candidates import LocalCandidate
from sidpar.planner.job import Job
from sidpar.planner.search import FREE, choose_local
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import PIPELINES, Cut, make_cut
from sidpar.schedules.placement import Copies, Placement
from sidpar.simulation import cost_model
from sidpar.simulation.cost_model import Prediction
from sidpar.simulation.costs import Costs

SINGLE = "one process"
AUTO = "auto"
"""In the key of what `parallel: auto` chooses, which has a row beside all others."""


@dataclass(frozen=True)
class Contender(ABC):
    """One row of the report."""

    method: str
    schedule: str
    extractor: str
    microbatches: int = 1
    network: str = "cascade"
    threads: int = 1
    stream: int = 1
    """Steps that are measured as one, because they overlap."""
    counts: tuple[int, ...] | None = None
    """Refiners per rank, where a plan has chosen them."""

    @property
    def key(self) -> str:
        """A name of its own."""
        parts = [self.method, self.schedule, self.extractor, f"M={self.microbatches}"]
        return " ".join([*parts, *[self.network] * (self.network != "cascade"), *[AUTO] * (self.counts is not None)])

    @property
    def single(self) -> bool:
        """Whether one rank works and the others wait."""
        return self.schedule.startswith(SINGLE)

    @property
    def hides_waiting(self) -> bool:
        """Whether ranks wait for others where no clock of ours sees it."""
        return False

    def build(self, runtime: Runtime, workload: Workload, costs: Costs) -> Stage | None:
        """What this rank holds, on its device; None on a rank that only waits. Raises UsageError for what cannot be."""
        if self.single and runtime.rank > 0:
            return None
        here = Runtime(rank=0, world_size=1, device=runtime.device, backend="none") if self.single else runtime
        return self.place(workload.networks[self.network](), here, workload, costs)

    @abstractmethod
    def place(self, cascade: Cascade, runtime: Runtime, workload: Workload, costs: Costs) -> Stage:
        """The stage of a rank that works."""

    @abstractmethod
    def engine(self, stage: Stage) -> Engine:
        """Its engine, which all ranks make together. Raises UsageError for what cannot be, on all of them."""

    def predict(self, engine: Engine | None, num_ranks: int, workload: Workload, costs: Costs) -> Prediction | None:
        """What the cost model makes of it; nothing, where the pieces were not measured with as many threads."""
        return None if self.threads > 1 else self.model(engine, num_ranks, workload, costs)

    @abstractmethod
    def model(self, engine: Engine | None, num_ranks: int, workload: Workload, costs: Costs) -> Prediction:
        """The same of a method whose pieces were."""

    def law(self, num_ranks: int) -> float | None:
        """The speed-up over naive BP for equal refiners."""
        if self.single:
            return 1.0 if self.threads == 1 else None
        return cost_model.law_speedup(self.schedule, num_ranks, self.microbatches, self.extractor)

    def paper(self, engine: Engine | None, workload: Workload, costs: Costs) -> float | None:
        """The paper's projected speed-up of SID, which knows no microbatches, schedules or messages."""
        return None


@dataclass(frozen=True)
class Local(Contender):
    """Refiners that learn locally, by SID."""

    def place(self, cascade: Cascade, runtime: Runtime, workload: Workload, costs: Costs) -> Stage:
        extractor: Any = "replicated" if self.single else self.extractor
        return Stage(cascade, runtime, extractor=extractor, counts=self.counts, compute=workload.compute)

    def engine(self, stage: Stage) -> Engine:
        if self.schedule == "streaming":
            return StreamingEngine(stage, Objective(), microbatches=self.microbatches)
        schedule: Any = "fused" if self.single else self.schedule
        return ParallelEngine(stage, Objective(), schedule=schedule, microbatches=self.microbatches)

    def model(self, engine: Engine | None, num_ranks: int, workload: Workload, costs: Costs) -> Prediction:
        batch = len(workload.x)
        if self.single:
            return cost_model.predict_whole(costs, batch, num_ranks=1, microbatches=self.microbatches)
        assert isinstance(engine, ParallelEngine)
        layout, placement = BatchLayout(batch, self.microbatches, num_ranks), engine.stage.placement
        assert isinstance(placement, Placement)
        lists = engine.lists(self.stream) if isinstance(engine, StreamingEngine) else engine.lists()
        return cost_model.predict_local(lists, placement, costs, layout, self.stream)

    def paper(self, engine: Engine | None, workload: Workload, costs: Costs) -> float | None:
        if self.single or engine is None:
            return None
        assert isinstance(engine, ParallelEngine)
        placement, batch = engine.stage.placement, len(workload.x)
        groups = [placement.refiners(rank) for rank in range(placement.num_ranks)]
        return cost_model.naive_seconds(costs, batch) / cost_model.paper_seconds(costs, batch, groups)


@dataclass(frozen=True)
class Whole(Contender):
    """Backpropagation through the whole cascade, in one process or by DDP."""

    @property
    def hides_waiting(self) -> bool:
        return not self.single  # DDP waits for other ranks inside its backward

    def place(self, cascade: Cascade, runtime: Runtime, workload: Workload, costs: Costs) -> Stage:
        copies = Copies(len(cascade.refiners), runtime.world_size)
        return Stage(cascade, runtime, placement=copies, compute=workload.compute)

    def engine(self, stage: Stage) -> Engine:
        return BPEngine(
            stage,
            Objective(),
            microbatches=self.microbatches,
            checkpointing="checkpointing" in self.schedule,
            deep_supervision="deep supervision" in self.schedule,
        )

    def model(self, engine: Engine | None, num_ranks: int, workload: Workload, costs: Costs) -> Prediction:
        return cost_model.predict_whole(
            costs,
            len(workload.x),
            num_ranks=1 if self.single else num_ranks,
            microbatches=self.microbatches,
            checkpointing="checkpointing" in self.schedule,
        )


@dataclass(frozen=True)
class Pipeline(Contender):
    """Backpropagation by a pipeline over ranks."""

    def place(self, cascade: Cascade, runtime: Runtime, workload: Workload, costs: Costs) -> Stage:
        cut = self.cut(runtime.world_size, workload, costs)
        return Stage(cascade, runtime, placement=cut, compute=workload.compute)

    def engine(self, stage: Stage) -> Engine:
        return PipelineEngine(stage, Objective(), schedule=self.schedule, microbatches=self.microbatches)  # type: ignore[arg-type]

    def cut(self, num_ranks: int, workload: Workload, costs: Costs) -> Cut:
        """The sections, balanced by the measured costs of a microbatch."""
        layers, refiners = costs.loads(len(workload.x) / self.microbatches)
        return make_cut(self.schedule, self.extractor, num_ranks, layers, refiners)  # type: ignore[arg-type]

    def model(self, engine: Engine | None, num_ranks: int, workload: Workload, costs: Costs) -> Prediction:
        assert isinstance(engine, PipelineEngine)
        cut = self.cut(num_ranks, workload, costs)
        return cost_model.predict_pipeline(engine.lists(), costs, cut, -(-len(workload.x) // self.microbatches))


def chosen_by_plan(costs: Costs, batch_size: int, num_ranks: int, stream: int) -> Contender:
    """What `parallel: auto` chooses from these costs, free in everything."""
    chosen = choose_local(Job(costs, batch_size, num_ranks), FREE)
    assert chosen is not None, "memory has no limit here"
    candidate = chosen.candidate
    assert isinstance(candidate, LocalCandidate)
    return Local(
        "sid",
        candidate.schedule,
        candidate.placement.extractor,
        candidate.microbatches,
        stream=stream if candidate.staleness else 1,
        counts=tuple(candidate.placement.counts),
    )


def contenders(
    workload: Workload, num_ranks: int, microbatches: list[int], extractors: list[str], stream: int
) -> Iterator[Contender]:
    """All that are compared, whether they can run or not, but for the plan's choice."""
    yield Pipeline("bp", "naive", "root")
    for m in microbatches:
        for pipeline in PIPELINES:
            if pipeline != "naive":
                yield Pipeline("bp", pipeline, "cut", m)
        for schedule in ("two_phase", "fused", "streaming"):
            for extractor in extractors:
                yield Local("sid", schedule, extractor, m, stream=stream if schedule == "streaming" else 1)
    yield Whole("ddp", "ddp", "whole")
    yield Whole("bp", SINGLE, "whole")
    yield Whole("bp", f"{SINGLE}, accumulation", "whole", max(microbatches))
    yield Whole("bp", f"{SINGLE}, checkpointing", "whole")
    yield Whole("bp", f"{SINGLE}, deep supervision", "whole")
    yield Local("sid", SINGLE, "whole")
    if workload.name != "emulated" and num_ranks > 1 and not torch.cuda.is_available():
        yield Whole("bp", f"{SINGLE}, {num_ranks} threads", "whole", threads=num_ranks)
        yield Local("sid", f"{SINGLE}, {num_ranks} threads", "whole", threads=num_ranks)
    if "recomputing" in workload.networks:
        for extractor in extractors:
            yield Local("sid", "streaming", extractor, min(microbatches), "recomputing", stream=stream)
    if "plain" in workload.networks:
        yield Whole("ddp", "ddp", "whole", network="plain")
        yield Whole("bp", SINGLE, "whole", network="plain")
        for m in [m for m in microbatches if m > 1]:
            yield Pipeline("bp", "1f1b", "cut", m, network="plain")
