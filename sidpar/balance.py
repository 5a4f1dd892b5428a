"""Measures what each part of a cascade costs, so that a placement can share the work evenly."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from sidpar import device
from sidpar.cascade import Cascade, TensorTuple, detach, extract, initial_state, refine

_REPEATS = 5


@dataclass(frozen=True)
class Costs:
    """Seconds of one forward and backward."""

    extractor: float
    refiners: list[float]


def measure_costs(cascade: Cascade, x: Tensor) -> Costs:
    """Forward and backward time of the extractor and of each refiner on a batch x, on x's device.

    Medians of a few runs after one that is not counted. Leaves weights, buffers and gradients as they were.
    """
    was_training = cascade.training
    cascade.to(x.device).eval()  # running statistics stay as they are
    features = detach(extract(cascade.extractor, x))
    extractor = _seconds(lambda: extract(cascade.extractor, x), x.device)
    state = initial_state(features, cascade.num_classes)
    refiners = []
    for refiner in cascade.refiners:
        refiners.append(_seconds(lambda r=refiner, s=state: refine(r, features, s), x.device))  # type: ignore[misc]
        state = detach(refine(refiner, features, state))
    cascade.zero_grad()
    cascade.train(was_training)
    return Costs(extractor, refiners)


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
