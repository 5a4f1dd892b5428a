"""Measures the pieces of a network and the engine's own cost for the cost model, on all ranks at once."""

from collections.abc import Callable, Collection
from dataclasses import replace
from statistics import median

from torch import Tensor

from sidpar.calibration.pieces import measure_costs
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.compute import Compute
from sidpar.config.groups.objective import Objective
from sidpar.distributed.runtime import Runtime
from sidpar.engines.parallel import ParallelEngine
from sidpar.profiler.clock import Clock
from sidpar.simulation.costs import Costs, Links, from_plain, median_costs, to_plain
from sidpar.stages.stage import Stage

_STEPS = 4
_HALVINGS = 8


def halvings(rows: int) -> set[int]:
    """The batch sizes that a search for M needs: a number of rows, its half, a quarter and so on. A single row is left
    out, because batch norm refuses it."""
    return {max(min(2, rows), rows >> k) for k in range(_HALVINGS)}


def calibrate(
    runtime: Runtime,
    build: Callable[[], Cascade],
    x: Tensor,
    y: Tensor,
    compute: Compute,
    sizes: Collection[int],
    links: Links,
    *,
    what: str = "cascade",
) -> Costs:
    """The cost of each piece on batches of `sizes` rows like x [B, ...] and y, measured on all ranks at once, as they
    will run; the median over ranks, the same on all of them. Each rank has the whole cascade for that long."""
    mine = measure_costs(build(), x, compute, sorted(sizes), apart=True)
    everyone = runtime.exchange(f"costs of the {what}", to_plain(mine))
    costs = median_costs([from_plain(plain) for plain in everyone])
    overheads = runtime.exchange(f"overhead of the {what}", _overhead(runtime, build, x, y, compute, costs, min(sizes)))
    return replace(costs, links=links, overhead=median(overheads))


def _overhead(
    runtime: Runtime, build: Callable[[], Cascade], x: Tensor, y: Tensor, compute: Compute, costs: Costs, rows: int
) -> float:
    """Seconds per piece of work by which a step of the SID engine in one process exceeds the pieces themselves."""
    alone = Runtime(rank=0, world_size=1, device=runtime.device, backend="none")
    parts = max(1, min(4, len(x) // rows))
    stage = Stage(build(), alone, extractor="replicated", compute=compute)
    engine = ParallelEngine(stage, Objective(), microbatches=parts)
    seconds = []
    for _ in range(_STEPS):
        clock = Clock(runtime.device)
        clock.start()
        engine.step(x[: parts * rows], y[: parts * rows])
        seconds.append(clock.read()[0])
    layers, refiners = costs.loads(rows)
    actions = 2 * (len(refiners) + 1)
    return max(0.0, median(seconds[1:]) / parts - sum(layers) - sum(refiners)) / actions
