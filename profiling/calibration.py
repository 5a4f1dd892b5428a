"""What the cost model is fed with: the pieces of a network and the engine's own cost, measured on all ranks at once."""

import statistics
from dataclasses import asdict, replace

from workloads import Workload

from sidpar import Objective, Runtime, SIDEngine, Stage
from sidpar.balance import measure_costs
from sidpar.clock import Clock
from sidpar.costs import Costs, Curve, Links, Piece


def calibrate(runtime: Runtime, workload: Workload, network: str, microbatches: list[int], links: Links) -> Costs:
    """The cost of each piece for every size that some method uses, measured on all ranks at once, as they will run;
    the median over ranks."""
    batch, ranks = len(workload.x), runtime.world_size
    sizes = {-(-batch // part) for m in microbatches for part in (1, ranks, m, m * ranks)}
    mine = measure_costs(workload.networks[network](), workload.x, workload.compute, sorted(sizes), apart=True)
    plain = asdict(mine) | {"links": None}
    others = runtime.exchange(f"costs of {network}", plain)

    def middle(kind: str, k: int, way: str) -> Curve:
        curves = [other[kind][k][way]["seconds"] for other in others]
        seconds = tuple(statistics.median(values) for values in zip(*curves, strict=True))
        return Curve(tuple(plain[kind][k][way]["rows"]), seconds)

    pieces = {
        kind: [
            Piece(middle(kind, k, "forward"), middle(kind, k, "backward"), piece["saved_bytes"])
            for k, piece in enumerate(plain[kind])
        ]
        for kind in ("layers", "refiners")
    }
    costs = Costs(**(plain | pieces | {"links": links}))
    overhead = runtime.exchange("overhead", engine_overhead(runtime, workload, network, costs, min(sizes)))
    return replace(costs, overhead=statistics.median(overhead))


def engine_overhead(runtime: Runtime, workload: Workload, network: str, costs: Costs, rows: int) -> float:
    """Seconds per piece of work by which a step of the SID engine in one process exceeds the pieces themselves."""
    alone = Runtime(rank=0, world_size=1, device=runtime.device, backend="none")
    parts = max(1, min(4, len(workload.x) // rows))
    x, y = workload.x[: parts * rows], workload.y[: parts * rows]
    stage = Stage(workload.networks[network](), alone, extractor="replicated", compute=workload.compute)
    engine = SIDEngine(stage, Objective(), microbatches=parts)
    seconds = []
    for _ in range(4):
        clock = Clock(runtime.device)
        clock.start()
        engine.step(x, y)
        seconds.append(clock.read()[0])
    pieces = [*costs.layers, *costs.refiners]
    work = sum(piece.forward(rows) + piece.backward(rows) for piece in pieces)
    actions = 2 * (len(costs.refiners) + 1)
    return max(0.0, statistics.median(seconds[1:]) / parts - work) / actions
