"""method=sid: refiners on ranks, each of which learns by a local rule such as SID."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, get_args

from torch import Tensor

from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.checks import filled
from sidpar.config.groups.choices import ExtractorPlacement, ScheduleName, SynchronousName
from sidpar.config.groups.refusals import Refusal, unread
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.engines.base import Engine
from sidpar.engines.parallel import ParallelEngine
from sidpar.engines.streaming import StreamingEngine
from sidpar.errors import UsageError
from sidpar.methods.auto import resolve
from sidpar.methods.base import Method, no_backpropagation, with_parallel
from sidpar.methods.costs import costs_for_placement, given_costs
from sidpar.planner.candidates import Candidate, LocalCandidate
from sidpar.planner.job import Job
from sidpar.planner.report import spoken
from sidpar.planner.search import FREE, Freedom, Option, choose_local, place
from sidpar.rules import rule_of
from sidpar.schedules.placement import Placement, place_by_cost, place_by_count
from sidpar.stages.check import check
from sidpar.stages.stacks import agree_on_stacks
from sidpar.stages.stage import Stage


def _check_leaves_open(parallel: Any) -> None:
    if parallel.auto and None not in (
        parallel.extractor,
        parallel.schedule,
        parallel.microbatches,
        parallel.placement,
    ):
        raise UsageError(
            "parallel.auto=true has nothing to choose, because parallel.extractor, schedule, microbatches and "
            "placement are all given: remove it, or one of them"
        )


AUTO = (
    unread(
        "with parallel.auto=true",
        "parallel.auto=true measures the costs",
        "parallel.costs",
        "parallel.extractor_cost",
        when=lambda parallel: parallel.auto,
    ),
    Refusal(
        ("parallel.auto",),
        "true, where parallel.extractor, parallel.schedule, parallel.microbatches and parallel.placement are all given",
        _check_leaves_open,
    ),
)
"""What the plan of a job decides, and a configuration need not."""


class SIDMethod(Method):
    """Model-parallel: the only method that places refiners apart, streams, and can choose for itself."""

    name = "sid"
    learns_locally = True

    offers = MappingProxyType({"schedule": get_args(ScheduleName), "extractor": get_args(ExtractorPlacement)})
    refuses = (*AUTO, no_backpropagation("sid"))

    def decide(self, config: Config) -> Config:
        config = with_parallel(config, **filled(config.parallel, refiner_execution="loop"))
        if config.parallel.auto:
            return config
        defaults = {"extractor": "sharded", "schedule": "fused", "microbatches": 1, "placement": "count"}
        return with_parallel(config, **filled(config.parallel, **defaults))

    def in_words(self, config: Config, ranks: int) -> str:
        parallel = config.parallel
        late = f", staleness {parallel.staleness}" if parallel.staleness else ""
        stacked = ", stacked" if parallel.refiner_execution == "stacked" else ""
        schedule = f"schedule {parallel.schedule}, extractor {parallel.extractor}, M = {parallel.microbatches}"
        return f"{config.learning}, {schedule}{late}{stacked}"

    def check_ranks(self, config: Config, ranks: int) -> None:
        place_by_count(config.model.refiners, ranks // config.parallel.replicas)

    def expected(self, config: Config, job: Job) -> Option:
        if not config.parallel.auto:
            return super().expected(config, job)
        chosen = choose_local(job, _freedom(config))
        if chosen is None:
            raise UsageError(
                f"parallel.auto=true finds no schedule and placement for {spoken(job.rule)} that fit: use more ranks, "
                "or a smaller batch"
            )
        return chosen

    def candidate(self, config: Config, job: Job) -> Candidate:
        parallel, num_refiners = config.parallel, len(job.costs.refiners)
        microbatches = min(_microbatches(config), len(job.share.taken))
        loads = job.costs.loads(len(job.share.taken) / microbatches)
        if parallel.costs is not None:
            loads = given_costs(config, 0, num_refiners)
        extractor: ExtractorPlacement = parallel.extractor  # type: ignore[assignment]  # checked by `complete`
        counts = place(loads, extractor, job.cascade_size, parallel.placement)
        rule_of(config.objective).check(num_refiners)
        return LocalCandidate(
            _schedule(config), Placement(counts, extractor), microbatches, parallel.staleness or 0, job.rule
        )

    def choose(
        self, config: Config, build: Callable[[], Cascade], sample: Tensor, runtime: Runtime
    ) -> tuple[Config, dict[str, Any]]:
        if not config.parallel.auto:
            return config, {}
        return resolve(config, _freedom(config), build, sample, runtime)

    def place(self, config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Stage:
        extractor: ExtractorPlacement = config.parallel.extractor  # type: ignore[assignment]  # checked by `complete`
        counts = _counts(config, cascade, sample, runtime)
        stage = Stage(
            cascade,
            runtime,
            extractor=extractor,
            counts=counts,
            compute=config.compute,
            sync_batchnorm=config.parallel.sync_batchnorm,
        )
        if config.parallel.refiner_execution == "stacked":
            agree_on_stacks(stage, sample)
        return stage

    def engine(self, config: Config, stage: Stage, sample: Tensor) -> Engine:
        parallel, rule = config.parallel, rule_of(config.objective)
        settings: dict[str, Any] = {
            "microbatches": _microbatches(config),
            "refiner_execution": parallel.refiner_execution,
            "seed": config.run.seed,
        }
        rule.check_states(check(stage, sample))
        if parallel.staleness:
            names = ("staleness", "weight_prediction", "diagnose_every")
            settings |= {name: getattr(parallel, name) for name in names}
            return StreamingEngine(stage, rule, **settings)
        schedule: SynchronousName = _schedule(config)  # type: ignore[assignment]  # no stream without staleness
        return ParallelEngine(stage, rule, schedule=schedule, **settings)


def _freedom(config: Config) -> Freedom:
    """What a configuration leaves open to a plan."""
    parallel = config.parallel
    return Freedom(
        schedules=FREE.schedules if parallel.schedule is None else [_schedule(config)],
        extractors=FREE.extractors if parallel.extractor is None else [parallel.extractor],  # type: ignore[list-item]
        microbatches=parallel.microbatches,
        placement=parallel.placement,
        staleness=parallel.staleness or 1,
    )


def _schedule(config: Config) -> ScheduleName:
    """The given schedule: a stream without staleness is `fused`."""
    name = config.parallel.schedule
    return "fused" if name == "streaming" and not config.parallel.staleness else name  # type: ignore[return-value]


def _microbatches(config: Config) -> int:
    return config.parallel.microbatches or 1


def _counts(config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime) -> Sequence[int] | None:
    """Refiners per rank of a cascade; None leaves it to `Stage`, which places by count."""
    parallel, num_ranks = config.parallel, runtime.cascade_size
    if parallel.placement == "count" or num_ranks == 1:
        return None
    if isinstance(parallel.placement, list):
        return parallel.placement
    layers, refiners = costs_for_placement(config, cascade, sample, runtime, _microbatches(config))
    return place_by_cost(refiners, num_ranks, sum(layers) if parallel.extractor == "root" else 0.0)
