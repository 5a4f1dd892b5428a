"""Measures what each part of a cascade costs, so that a placement can share the work evenly."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from sidpar import device
from sidpar.cascade import Cascade, TensorTuple, detach, initial_state
from sidpar.compute import Compute
from sidpar.runtime import Runtime
from sidpar.stage import Stage

_REPEATS = 5


@dataclass(frozen=True)
class Costs:
    """Seconds of one forward and backward."""

    extractor: float
    refiners: list[float]


def measure_costs(cascade: Cascade, x: Tensor, compute: Compute) -> Costs:
    """Forward and backward time of the extractor and of each refiner on a batch x, on x's device, as `compute` says.

    Medians of a few runs after one that is not counted. Works on a copy of the cascade.
    """
    runtime = Runtime(rank=0, world_size=1, device=x.device, backend="none")
    stage = Stage(copy.deepcopy(cascade), runtime, compute=compute)
    features = detach(stage.extract(x, graph=False))
    state = initial_state(features, cascade.num_classes)
    refiners = []
    for i in stage.own_refiners:
        refiners.append(_seconds(partial(stage.refine, i, features, state, graph=True), x.device))
        state = detach(stage.refine(i, features, state, graph=False))
    return Costs(_seconds(partial(stage.extract, x, graph=True), x.device), refiners)


def _seconds(forward: Callable[[], TensorTuple], place: torch.device) -> float:
    times = []
    for _ in range(_REPEATS + 1):
        device.synchronize(place)
        start = time.perf_counter()
        outputs = [tensor for tensor in forward() if tensor.requires_grad]
        if outputs:
            torch.autograd.backward(outputs, [torch.ones_like(tensor) for tensor in outputs])
        device.synchronize(place)
        times.append(time.perf_counter() - start)
    return median(times[1:])
