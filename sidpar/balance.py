"""Measures what each piece of a cascade costs: to share the work evenly, and to predict steps from."""

import copy
from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

from sidpar import device
from sidpar.cascade import Cascade, TensorTuple, initial_state
from sidpar.compute import Compute
from sidpar.cost_model import Costs, Curve, Piece
from sidpar.memory import SavedTensors, bytes_of
from sidpar.runtime import Runtime
from sidpar.stage import Stage

_REPEATS = 5


def measure_costs(cascade: Cascade, x: Tensor, compute: Compute, rows: Sequence[int] = ()) -> Costs:
    """Forward and backward time and saved bytes of each of the extractor's layers and each refiner, on x's device.

    Medians of a few runs after one that is not counted, by CUDA events on a GPU, for batches of each size in `rows` (by
    default x's own), cut from x. Works on a copy of the cascade. Messages are not measured here (see `links.py`).
    """
    runtime = Runtime(rank=0, world_size=1, device=x.device, backend="none")
    stage = Stage(copy.deepcopy(cascade), runtime, compute=compute)
    sizes = sorted(set(rows) or {len(x)})
    measured = [_measure(stage, x[:size]) for size in sizes]
    pieces = [
        Piece(
            Curve(tuple(sizes), tuple(runs[k].forward for runs in measured)),
            Curve(tuple(sizes), tuple(runs[k].backward for runs in measured)),
            measured[-1][k].saved_bytes / sizes[-1],
        )
        for k in range(len(measured[0]))
    ]
    num_layers = len(pieces) - len(stage.own_refiners)
    specs = stage.skeleton.specs(x)
    extractor = list(cascade.extractor.parameters())
    return Costs(
        layers=pieces[:num_layers],
        refiners=pieces[num_layers:],
        feature_bytes=bytes_of(spec.empty(1, torch.device("meta")) for spec in specs.features),
        state_bytes=[bytes_of(spec.empty(1, torch.device("meta")) for spec in state) for state in specs.states],
        layer_bytes=[run.output_bytes / sizes[-1] for run in measured[-1][:num_layers]],
        extractor_parameter_bytes=bytes_of(p for p in extractor if p.requires_grad),
        parameter_bytes=bytes_of(p for p in cascade.parameters() if p.requires_grad),
    )


class _Run:
    """One piece's figures for one size, and its output, detached."""

    def __init__(self, forward: Callable[[], TensorTuple], place: torch.device, known: Sequence[Tensor]) -> None:
        forwards, backwards = [], []
        for _ in range(_REPEATS + 1):
            device.synchronize(place)
            start = device.mark(place)
            outputs = forward()
            middle = device.mark(place)
            trained = [tensor for tensor in outputs if tensor.requires_grad]
            if trained:
                torch.autograd.backward(trained, [torch.ones_like(tensor) for tensor in trained])
            end = device.mark(place)
            device.synchronize(place)
            forwards.append(device.seconds_between(start, middle))
            backwards.append(device.seconds_between(middle, end))
        with SavedTensors(known) as saved:
            outputs = forward()
            self.saved_bytes = saved.now
        self.forward, self.backward = median(forwards[1:]), median(backwards[1:])
        self.output_bytes = bytes_of(outputs)
        self.outputs = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in outputs)


def _measure(stage: Stage, x: Tensor) -> list[_Run]:
    """All pieces in turn, each fed with what the one before returned."""
    place, parameters = x.device, list(stage.parameters())
    layers = _layers(stage)
    runs: list[_Run] = []
    tensors: TensorTuple = (x,)
    for layer in layers:
        known = [*parameters, x]
        runs.append(_Run(lambda layer=layer, seen=tensors[0]: stage.run_layers(layer, seen, graph=True), place, known))  # type: ignore[misc]
        tensors = runs[-1].outputs
    features = tuple(t.detach().float().requires_grad_() if t.dtype == torch.bfloat16 else t for t in tensors)
    state = initial_state(features, stage.num_classes)
    for i in stage.own_refiners:
        run = _Run(lambda i=i, s=state: stage.refine(i, features, s, graph=True), place, [*parameters, *features])  # type: ignore[misc]
        runs.append(run)
        state = run.outputs
    return runs


def _layers(stage: Stage) -> list[torch.nn.Module]:
    assert stage.extractor is not None
    if isinstance(stage.extractor, torch.nn.Sequential):
        return list(stage.extractor.children())
    return [stage.extractor]
