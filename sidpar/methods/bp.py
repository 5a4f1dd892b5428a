"""method=bp: backpropagation in one process, or as a pipeline over ranks."""

from types import MappingProxyType
from typing import get_args

from torch import Tensor

from sidpar.cascade.cascade import Cascade
from sidpar.cascade.specs import Skeleton
from sidpar.config.groups.checks import filled
from sidpar.config.groups.choices import CutExtractor, PipelineName
from sidpar.config.groups.refusals import unread
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.engines.backpropagation.order import torch_order
from sidpar.engines.backpropagation.pipeline import PipelineEngine
from sidpar.engines.base import Engine
from sidpar.errors import UsageError
from sidpar.methods.base import Method, no_local_losses, with_parallel
from sidpar.methods.costs import costs_for_placement, given_costs
from sidpar.methods.ddp import DDPMethod, whole_candidate
from sidpar.planner.candidates import Candidate, PipelineCandidate
from sidpar.planner.job import Job
from sidpar.schedules.cut import Cut, check_microbatches, make_cut
from sidpar.stages.stage import Stage


class BPMethod(Method):
    """In one process it is DDP on one rank, and the settings of a pipeline are left alone: so one configuration serves
    every number of ranks."""

    name = "bp"

    offers = MappingProxyType({"schedule": get_args(PipelineName), "extractor": get_args(CutExtractor)})
    refuses = (
        unread("with method=bp", "method=bp has one loss for all refiners", "parallel.refiner_execution"),
        unread(
            "with method=bp",
            "method=bp cannot replicate a pipeline; method=ddp has a copy of the network on every rank",
            "parallel.replicas",
        ),
        unread("with method=bp", "only method=sid can choose its settings", "parallel.auto"),
        unread(
            "with method=bp",
            "method=bp divides no microbatch among ranks; method=ddp does",
            "parallel.sync_batchnorm",
        ),
        no_local_losses("bp"),
    )

    def decide(self, config: Config) -> Config:
        return with_parallel(config, **filled(config.parallel, extractor="cut", schedule="1f1b", placement="cost"))

    def in_words(self, config: Config, ranks: int) -> str:
        if ranks == 1:
            return _IN_ONE_PROCESS.in_words(config, ranks)
        schedule, extractor = config.parallel.schedule, config.parallel.extractor
        return f"{config.learning}, schedule {schedule}, extractor {extractor}, M = {_microbatches(config, ranks)}"

    def candidate(self, config: Config, job: Job) -> Candidate:
        ranks, parallel = job.num_ranks, config.parallel
        microbatches = min(_microbatches(config, ranks), len(job.share.taken))
        if ranks == 1:
            return whole_candidate(config, job, microbatches, "bp", "one device")
        loads = job.costs.loads(len(job.share.taken) / microbatches)
        if parallel.costs is not None:
            num_layers = len(job.costs.layers) if parallel.extractor == "cut" else 0
            loads = given_costs(config, num_layers, len(job.costs.refiners))
        _check_pipeline(config, ranks)
        schedule, extractor = _schedule(config), _extractor(config)
        check_microbatches(schedule, microbatches, ranks)
        cut = make_cut(schedule, extractor, ranks, *loads, counts=_counts(config), by_cost=_by_cost(config))
        return PipelineCandidate(schedule, cut, microbatches, torch_order)

    def place(self, config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Stage:
        if runtime.world_size == 1:
            return _IN_ONE_PROCESS.place(config, cascade, sample, runtime)
        return Stage(cascade, runtime, placement=_cut(config, cascade, sample, runtime), compute=config.compute)

    def engine(self, config: Config, stage: Stage, sample: Tensor) -> Engine:
        ranks = stage.runtime.world_size
        if ranks == 1:
            return _IN_ONE_PROCESS.engine(config, stage, sample)
        _check_pipeline(config, ranks)
        return PipelineEngine(
            stage,
            config.objective,
            schedule=_schedule(config),
            microbatches=_microbatches(config, ranks),
            seed=config.run.seed,
        )


_IN_ONE_PROCESS = DDPMethod()


def _schedule(config: Config) -> PipelineName:
    return config.parallel.schedule  # type: ignore[return-value]  # checked by `complete`


def _extractor(config: Config) -> CutExtractor:
    return config.parallel.extractor  # type: ignore[return-value]  # checked by `complete`


def _counts(config: Config) -> list[int] | None:
    """Pieces per section, if they are given."""
    return config.parallel.placement if isinstance(config.parallel.placement, list) else None


def _by_cost(config: Config) -> bool:
    return config.parallel.placement == "cost"


def _microbatches(config: Config, ranks: int) -> int:
    """M; by default 1 in one process, and for a pipeline 4 per rank, which all of its schedules accept."""
    if config.parallel.microbatches is not None:
        return config.parallel.microbatches
    return 4 * ranks if ranks > 1 and config.parallel.schedule != "naive" else 1


def _check_pipeline(config: Config, ranks: int) -> None:
    if config.bp.checkpointing or config.bp.deep_supervision:
        raise UsageError(
            f"bp.checkpointing and bp.deep_supervision are for one process or method=ddp, but method=bp runs as a "
            f"pipeline over {ranks} ranks: remove them, start one process, or use method=ddp"
        )


def _cut(config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Cut:
    """The sections of the pipeline."""
    schedule, extractor, ranks = _schedule(config), _extractor(config), runtime.world_size
    microbatches, counts = _microbatches(config, ranks), _counts(config)
    check_microbatches(schedule, microbatches, ranks)  # before anything is measured
    layers, refiners = [1.0] * len(Skeleton(cascade).layer_names), [1.0] * len(cascade.refiners)
    make_cut(schedule, extractor, ranks, layers, refiners, counts=counts)  # nor if it cannot be cut at all
    if _by_cost(config):
        layers, refiners = costs_for_placement(config, cascade, sample, runtime, microbatches)
    return make_cut(schedule, extractor, ranks, layers, refiners, counts=counts, by_cost=_by_cost(config))
