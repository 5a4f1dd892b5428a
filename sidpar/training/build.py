"""From a configuration to a network, this rank's share of it, and the engine that trains it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sidpar.calibration.pieces import measure_costs
from sidpar.calibration.together import calibrate, halvings
from sidpar.cascade.cascade import Cascade
from sidpar.cascade.specs import Skeleton
from sidpar.config.groups.choices import CutExtractor, ExtractorPlacement, PipelineName, SynchronousName
from sidpar.config.schema import Config
from sidpar.data.datasets import Dataset
from sidpar.data.loader import Loader
from sidpar.distributed.runtime import Runtime
from sidpar.engines.backpropagation.pipeline import PipelineEngine
from sidpar.engines.backpropagation.whole import BPEngine
from sidpar.engines.base import Engine
from sidpar.engines.local import LocalEngine
from sidpar.engines.parallel import ParallelEngine
from sidpar.engines.streaming import StreamingEngine
from sidpar.errors import UsageError
from sidpar.models.network import build_network
from sidpar.schedules.batching import Share
from sidpar.schedules.cut import Cut, check_microbatches, make_cut
from sidpar.schedules.placement import Copies, place_by_cost
from sidpar.simulation.costs import Costs, Links
from sidpar.stages.stacks import agree_on_stacks
from sidpar.stages.stage import Stage


def build_cascade(config: Config, dataset: Dataset) -> Cascade:
    """The configured network for the images of a dataset."""
    return build_network(config, dataset.image_shape, dataset.num_classes)


def build_stage(config: Config, cascade: Cascade, loader: Loader, runtime: Runtime) -> Stage:
    """This rank's share, placed as `config.method` needs it. Raises UsageError, the same on every rank, if the network
    cannot be placed, or its refiners cannot run at once and should."""
    if config.method == "ddp" or (config.method == "bp" and runtime.world_size == 1):
        copies = Copies(len(cascade.refiners), runtime.world_size)
        return Stage(cascade, runtime, placement=copies, compute=config.compute)
    if config.method == "bp":
        sections = choose_cut(config, cascade, loader, runtime)
        return Stage(cascade, runtime, placement=sections, compute=config.compute)
    if config.method == "local":
        return Stage(cascade, runtime, compute=config.compute)
    extractor: ExtractorPlacement = config.parallel.extractor  # type: ignore[assignment]  # checked by Config
    counts = choose_counts(config, cascade, loader, runtime)
    stage = Stage(cascade, runtime, extractor=extractor, counts=counts, compute=config.compute)
    if config.parallel.refiner_execution == "stacked":
        agree_on_stacks(stage, loader.sample)
    return stage


def build_engine(config: Config, stage: Stage) -> Engine:
    """The engine of `config.method`; from here on nobody asks which it is."""
    seed, world_size = config.run.seed, stage.runtime.world_size
    microbatches = choose_microbatches(config, world_size)
    if config.method == "local":
        return LocalEngine(stage, config.objective, seed=seed)
    if config.method == "sid":
        settings: dict[str, Any] = {
            "microbatches": microbatches,
            "refiner_execution": config.parallel.refiner_execution,
        }
        if config.parallel.staleness:
            names = ("staleness", "weight_prediction", "diagnose_every")
            settings |= {name: getattr(config.parallel, name) for name in names}
            return StreamingEngine(stage, config.objective, seed=seed, **settings)
        name = config.parallel.schedule
        schedule: SynchronousName = "fused" if name == "streaming" else name  # type: ignore[assignment]  # checked by Config
        return ParallelEngine(stage, config.objective, schedule=schedule, seed=seed, **settings)
    if config.method == "bp" and world_size > 1:
        check_pipeline(config, world_size)
        pipeline: PipelineName = config.parallel.schedule  # type: ignore[assignment]  # checked by Config
        return PipelineEngine(stage, config.objective, schedule=pipeline, microbatches=microbatches, seed=seed)
    return BPEngine(
        stage,
        config.objective,
        microbatches=microbatches,
        checkpointing=config.bp.checkpointing,
        deep_supervision=config.bp.deep_supervision,
        seed=seed,
    )


def check_pipeline(config: Config, world_size: int) -> None:
    """Raises UsageError for settings that a pipeline of backpropagation does not have."""
    if config.bp.checkpointing or config.bp.deep_supervision:
        raise UsageError(
            f"bp.checkpointing and bp.deep_supervision are for one process or method=ddp, but method=bp runs as a "
            f"pipeline over {world_size} ranks: remove them, start one process, or use method=ddp"
        )


def choose_microbatches(config: Config, world_size: int) -> int:
    """M; by default 1, and for a pipeline of backpropagation 4 per rank, which all of its schedules accept."""
    if config.parallel.microbatches is not None:
        return config.parallel.microbatches
    pipeline = config.method == "bp" and world_size > 1 and config.parallel.schedule != "naive"
    return 4 * world_size if pipeline else 1


def choose_counts(config: Config, cascade: Cascade, loader: Loader, runtime: Runtime) -> Sequence[int] | None:
    """Refiners per rank of a cascade; None leaves it to `Stage`, which places by count."""
    parallel, num_ranks = config.parallel, runtime.cascade_size
    if parallel.placement == "count" or num_ranks == 1:
        return None
    if isinstance(parallel.placement, list):
        return parallel.placement
    layers, refiners = _costs(config, cascade, loader, runtime)
    return place_by_cost(refiners, num_ranks, sum(layers) if parallel.extractor == "root" else 0.0)


def choose_cut(config: Config, cascade: Cascade, loader: Loader, runtime: Runtime) -> Cut:
    """The sections of a pipeline of backpropagation."""
    parallel, world_size = config.parallel, runtime.world_size
    schedule: PipelineName = parallel.schedule  # type: ignore[assignment]  # checked by Config
    extractor: CutExtractor = parallel.extractor  # type: ignore[assignment]
    check_microbatches(schedule, choose_microbatches(config, world_size), world_size)  # before anything is measured
    counts = parallel.placement if isinstance(parallel.placement, list) else None
    num_layers = len(Skeleton(cascade).layer_names)
    layers, refiners = [1.0] * num_layers, [1.0] * len(cascade.refiners)
    make_cut(schedule, extractor, world_size, layers, refiners, counts=counts)  # nor if it cannot be cut at all
    if parallel.placement == "cost":
        layers, refiners = _costs(config, cascade, loader, runtime)
    by_cost = parallel.placement == "cost"
    return make_cut(schedule, extractor, world_size, layers, refiners, counts=counts, by_cost=by_cost)


def _costs(config: Config, cascade: Cascade, loader: Loader, runtime: Runtime) -> tuple[list[float], list[float]]:
    """Cost of each of the extractor's layers (one, if it stays whole) and of each refiner: given, or measured."""
    parallel = config.parallel
    num_layers = len(Skeleton(cascade).layer_names) if parallel.extractor == "cut" else 0
    if parallel.costs is not None:
        return given_costs(config, num_layers, len(cascade.refiners))
    measured = None
    if runtime.rank == 0:
        parts = parallel.replicas * choose_microbatches(config, runtime.world_size)
        rows = max(1, config.data.batch_size // parts)
        costs = measure_costs(cascade, loader.sample.repeat(rows, 1, 1, 1)[:rows], config.compute, apart=num_layers > 0)
        measured = costs.loads(rows)
    layer_costs, refiner_costs = runtime.from_root("measured costs", measured)
    return layer_costs, refiner_costs


def measure_pieces(
    config: Config, build: Callable[[], Cascade], sample: Tensor, runtime: Runtime, links: Links
) -> Costs:
    """What the pieces of the configured cascade cost on all of these ranks at once, on a replica's share of the batch
    and parts of it, made of images like `sample` [n, channels, H, W]."""
    rows = len(Share(config.data.batch_size, config.parallel.replicas, 0).taken)
    x = sample.repeat(-(-rows // len(sample)), 1, 1, 1)[:rows]
    y = torch.zeros(rows, dtype=torch.int64, device=x.device)
    return calibrate(runtime, build, x, y, config.compute, halvings(rows), links)


def given_costs(config: Config, num_layers: int, num_refiners: int) -> tuple[list[float], list[float]]:
    """`parallel.costs`: of each layer of an extractor that is cut, else of the whole extractor, and of each refiner."""
    costs = config.parallel.costs
    assert costs is not None
    if len(costs) != num_layers + num_refiners:
        layers = f" and one for each of the extractor's {num_layers} layers before them" if num_layers else ""
        raise UsageError(
            f"parallel.costs lists {len(costs)} numbers, but model.num_refiners={num_refiners}: "
            f"give one per refiner{layers}"
        )
    return costs[:num_layers] or [config.parallel.extractor_cost or 0.0], costs[num_layers:]
