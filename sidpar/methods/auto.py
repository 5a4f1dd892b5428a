"""`parallel.auto=true`: a plan, made on the ranks of the job, chooses the settings that a configuration leaves open."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from sidpar.calibration.links import measure_links
from sidpar.cascade.batch_norm.module import Company, synchronise
from sidpar.cascade.cascade import Cascade
from sidpar.config.schema import Config
from sidpar.config.units import human
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.methods.base import job_of, with_parallel
from sidpar.methods.costs import measure_pieces
from sidpar.planner.report import spoken
from sidpar.planner.search import Freedom, choose_local, record_of
from sidpar.schedules.placement import place_by_count
from sidpar.stages.check import depends_on_the_batch


def resolve(
    config: Config, freedom: Freedom, build: Callable[[], Cascade], sample: Tensor, runtime: Runtime
) -> tuple[Config, dict[str, Any]]:
    """The configuration with everything chosen, and what is expected of it; the same on all ranks, which all call it.

    `build` makes its network, `sample` are images [n, channels, H, W] for it. Settings that are given stay as they are.
    Raises UsageError on every rank if nothing fits.
    """
    place_by_count(config.model.refiners, runtime.cascade_size)  # before anything is measured
    costs = measure_pieces(config, build, sample, runtime, measure_links(runtime))
    usable = min(runtime.exchange("memory", runtime.usable_memory), key=lambda size: size or math.inf)
    job = job_of(config, costs, runtime.world_size, usable)
    company = Company()
    extractor = build().extractor
    if config.parallel.sync_batchnorm:
        synchronise(extractor, company)
    chosen = choose_local(job, feasible(freedom, extractor, sample, runtime, company))
    # All ranks have the same costs and find the same; rank 0's choice counts all the same.
    choice: dict[str, Any] | None = runtime.from_root("plan", None if chosen is None else record_of(chosen))
    if choice is None:
        raise UsageError(
            f"parallel.auto=true finds no schedule and placement for {spoken(job.rule)} that fit {human(usable)} on "
            f"each of {runtime.world_size} ranks: start more ranks, or set a smaller data.batch_size"
        )
    settings = {name: choice[name] for name in ("extractor", "microbatches", "placement")}
    schedule = config.parallel.schedule or choice["schedule"]
    return with_parallel(config, auto=False, schedule=schedule, **settings), choice


def feasible(
    freedom: Freedom, extractor: nn.Module, sample: Tensor, runtime: Runtime, company: Company | None = None
) -> Freedom:
    """Without the sharded placement, if an extractor that sees a part of the batch would compute something else.
    `company` is that of batch norms which share their statistics."""
    extractors, parts = list(freedom.extractors), max(2, runtime.cascade_size)
    if len(extractors) > 1 and depends_on_the_batch(extractor.to(runtime.device), sample, parts, company):
        extractors.remove("sharded")
    return replace(freedom, extractors=extractors)
