"""The costs of the pieces of a configured cascade: as given, or as measured here."""

from collections.abc import Callable

import torch
from torch import Tensor

from sidpar.calibration.all_ranks import calibrate, halvings
from sidpar.calibration.pieces import measure_costs
from sidpar.cascade.cascade import Cascade
from sidpar.cascade.specs import Skeleton
from sidpar.config.schema import Config
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError
from sidpar.schedules.batching import Share
from sidpar.simulation.costs import Costs, Links


def costs_for_placement(
    config: Config, cascade: Cascade, sample: Tensor, runtime: Runtime, microbatches: int
) -> tuple[list[float], list[float]]:
    """Cost of each of the extractor's layers (one, if it stays whole) and of each refiner: given, or measured on rank
    0. All ranks call it."""
    parallel = config.parallel
    num_layers = len(Skeleton(cascade).layer_names) if parallel.extractor == "cut" else 0
    if parallel.costs is not None:
        return given_costs(config, num_layers, len(cascade.refiners))
    measured = None
    if runtime.rank == 0:
        rows = max(1, config.data.batch_size // (parallel.replicas * microbatches))
        costs = measure_costs(cascade, sample.repeat(rows, 1, 1, 1)[:rows], config.compute, apart=num_layers > 0)
        measured = costs.loads(rows)
    layer_costs, refiner_costs = runtime.from_root("measured costs", measured)
    return layer_costs, refiner_costs


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


def measure_pieces(
    config: Config, build: Callable[[], Cascade], sample: Tensor, runtime: Runtime, links: Links
) -> Costs:
    """What the pieces of the configured cascade cost on all of these ranks at once, on a replica's share of the batch
    and parts of it, made of images like `sample` [n, channels, H, W]."""
    rows = len(Share(config.data.batch_size, config.parallel.replicas, 0).taken)
    x = sample.repeat(-(-rows // len(sample)), 1, 1, 1)[:rows]
    y = torch.zeros(rows, dtype=torch.int64, device=x.device)
    return calibrate(runtime, build, x, y, config.compute, halvings(rows), links)
