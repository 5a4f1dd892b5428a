"""What a configuration will run, as a candidate of a plan."""

from sidpar.config.groups.choices import CutExtractor, ExtractorPlacement, PipelineName, ScheduleName
from sidpar.config.schema import Config
from sidpar.engines.backpropagation.order import torch_order
from sidpar.errors import UsageError
from sidpar.planner.candidates import Candidate, LocalCandidate, PipelineCandidate, WholeCandidate
from sidpar.planner.job import Job
from sidpar.planner.search import FREE, MOST, Freedom, Option, choose_local, evaluate, place
from sidpar.rules import rule_of
from sidpar.schedules.cut import check_microbatches, make_cut
from sidpar.schedules.placement import Copies, Placement
from sidpar.simulation.costs import Costs
from sidpar.training.build import check_pipeline, choose_microbatches, given_costs


def job_of(config: Config, costs: Costs, num_ranks: int, device_memory: float | None) -> Job:
    """What a configuration trains, on so many ranks in all."""
    optim = config.optim
    momentum = 1.0 if optim.momentum else 0.0
    rule = rule_of(config.objective)
    return Job(
        costs,
        config.data.batch_size,
        num_ranks,
        config.parallel.replicas,
        rule=rule.name,
        trains_extractor=rule.trains_extractor and costs.extractor_parameter_bytes > 0,
        passes_states=rule.passes_states,
        refiner_execution=config.parallel.refiner_execution or "loop",
        state_per_byte=momentum if optim.name == "sgd" else 2.0,
        device_memory=device_memory,
    )


def configured(config: Config, job: Job) -> Option:
    """What is expected of a configuration as it is. Raises UsageError for one that could not run, as training would."""
    if config.parallel.auto:
        chosen = choose_local(job, freedom_of(config))
        if chosen is None:
            raise UsageError("parallel.auto=true finds no way of SID that fits: use more ranks, or a smaller batch")
        return chosen
    candidate = _candidate(config, job)
    return evaluate(job, candidate, candidate.bound(job), simulate=candidate.actions(job) <= MOST)


def freedom_of(config: Config) -> Freedom:
    """What a configuration of method=sid leaves open to a plan."""
    parallel = config.parallel
    return Freedom(
        schedules=FREE.schedules if parallel.schedule is None else [_schedule_of(config)],
        extractors=FREE.extractors if parallel.extractor is None else [parallel.extractor],  # type: ignore[list-item]
        microbatches=parallel.microbatches,
        placement=parallel.placement,
        staleness=parallel.staleness or 1,
    )


def _schedule_of(config: Config) -> ScheduleName:
    """The given schedule of a configuration of method=sid: a stream without staleness is `fused`."""
    name = config.parallel.schedule
    return "fused" if name == "streaming" and not config.parallel.staleness else name  # type: ignore[return-value]


def _candidate(config: Config, job: Job) -> Candidate:
    parallel, num_refiners, ranks = config.parallel, len(job.costs.refiners), job.num_ranks
    microbatches = min(choose_microbatches(config, ranks), len(job.share.taken))
    if config.method == "local":
        return LocalCandidate("fused", Placement((num_refiners,), "replicated"), 1)
    checkpointing = ", checkpointing" if config.bp.checkpointing else ""
    if config.method == "ddp":
        return WholeCandidate("ddp", f"ddp{checkpointing}", Copies(num_refiners, ranks), microbatches)  # type: ignore[arg-type]
    if config.method == "bp" and ranks == 1:
        return WholeCandidate("bp", f"one device{checkpointing}", Copies(num_refiners, 1), microbatches)  # type: ignore[arg-type]
    loads = job.costs.loads(len(job.share.taken) / microbatches)
    if parallel.costs is not None:
        loads = given_costs(config, len(job.costs.layers) if parallel.extractor == "cut" else 0, num_refiners)
    if config.method == "sid":
        extractor: ExtractorPlacement = parallel.extractor  # type: ignore[assignment]  # checked by Config
        counts = place(loads, extractor, job.cascade_size, parallel.placement)
        config.objective.alphas(num_refiners)
        staleness = parallel.staleness or 0
        return LocalCandidate(_schedule_of(config), Placement(counts, extractor), microbatches, staleness)
    check_pipeline(config, ranks)
    pipeline: PipelineName = parallel.schedule  # type: ignore[assignment]
    placed: CutExtractor = parallel.extractor  # type: ignore[assignment]
    check_microbatches(pipeline, microbatches, ranks)
    given = parallel.placement if isinstance(parallel.placement, list) else None
    cut = make_cut(pipeline, placed, ranks, *loads, counts=given, by_cost=parallel.placement == "cost")
    return PipelineCandidate(pipeline, cut, microbatches, torch_order)
