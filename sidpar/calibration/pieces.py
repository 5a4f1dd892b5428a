"""Measures the cost of each piece of a cascade, to balance the work and to predict steps."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sidpar.calibration.timing import Timed, limiting, time_piece
from sidpar.cascade.cascade import Cascade, TensorTuple, at_least_fp32, initial_state, leaves
from sidpar.cascade.duplicate import duplicate
from sidpar.cascade.specs import layer_names, named_sequence
from sidpar.config.groups.compute import Compute
from sidpar.distributed.runtime import Runtime
from sidpar.profiler.memory import bytes_of
from sidpar.profiler.saved_activations import SavedTensors
from sidpar.simulation.costs import Costs, Curve, Piece
from sidpar.stages.check import check
from sidpar.stages.stage import Stage


def measure_costs(
    cascade: Cascade, x: Tensor, compute: Compute, rows: Sequence[int] = (), *, apart: bool = False
) -> Costs:
    """Measure the forward and backward time and the saved bytes of the extractor and of each refiner, on x's device.

    Times are medians of a few runs, in seconds. On a GPU, for sizes at which launching all kernels takes longer than
    running them, they are the times of the launches. Works on a copy of the cascade. Messages are not measured here.

    Args:
        cascade: the network.
        x: inputs [B, ...].
        compute: how the modules are executed.
        rows: the batch sizes to measure, cut from x; by default x's own.
        apart: whether to measure each layer of a Sequential extractor separately.

    Returns:
        The costs, whose `loads(rows)` gives the layers' and the refiners' seconds for `place_by_cost` and `make_cut`.

    Raises:
        UsageError: x does not fit the cascade.
    """
    runtime = Runtime(rank=0, world_size=1, device=x.device, backend="none")
    stage = Stage(duplicate(cascade), runtime, compute=compute)
    sizes = sorted(set(rows) or {len(x)})
    layers = _layers(stage, apart)
    measured = [_measure(stage, x[:size], layers) for size in sizes]
    limits = [limiting(pieces) for pieces in measured]
    saved = _saved_bytes(stage, x, layers)

    def curve(seconds: Iterable[float]) -> Curve:
        return Curve(tuple(sizes), tuple(seconds))

    pieces = [
        Piece(
            curve(seconds[k].forward for seconds in limits),
            curve(seconds[k].backward for seconds in limits),
            saved[k][0],
            saved_fixed=saved[k][1],
            device=curve(timed[k].device.both for timed in measured) if x.is_cuda else None,
            launch=curve(timed[k].launch.both for timed in measured) if x.is_cuda else None,
            trained_bytes=bytes_of(p for p in module.parameters() if p.requires_grad),
            held_bytes=bytes_of([*module.parameters(), *module.buffers()]),
        )
        for k, module in enumerate([*layers, *stage.refiners.values()])
    ]
    specs, reads = check(stage, x), stage.skeleton.reads(x)
    return Costs(
        layers=pieces[: len(layers)],
        refiners=pieces[len(layers) :],
        feature_bytes=bytes_of(spec.empty(1, torch.device("meta")) for spec in specs.features),
        state_bytes=[bytes_of(spec.empty(1, torch.device("meta")) for spec in state) for state in specs.states],
        layer_bytes=[bytes_of(timed.outputs) / sizes[-1] for timed in measured[-1][: len(layers)]],
        input_bytes=bytes_of([x[:1]]),
        reads=None if reads is None else [sorted(refiners) for refiners in reads],
    )


def _layers(stage: Stage, apart: bool) -> list[nn.Module]:
    """The pieces of the extractor."""
    assert stage.extractor is not None
    names = layer_names(stage.extractor) if apart else [""]
    return [named_sequence(stage.extractor, [name]) if name else stage.extractor for name in names]


def _measure(stage: Stage, x: Tensor, layers: Sequence[nn.Module]) -> list[Timed]:
    """The times of all pieces."""
    pieces: list[Timed] = []

    def run(forward: Callable[[], TensorTuple]) -> TensorTuple:
        pieces.append(time_piece(forward, x.device))
        return pieces[-1].outputs

    _chain(stage, x, layers, run)
    return pieces


def _saved_bytes(stage: Stage, x: Tensor, layers: Sequence[nn.Module]) -> list[tuple[float, float]]:
    """Of each piece, what autograd keeps per row, and besides. Found from few rows: the whole chain is in memory."""
    few, more = min(2, len(x)), min(8, len(x))
    found = [_kept(stage, x[:rows], layers) for rows in (few, more)]
    if few == more:
        return [(size / more, 0.0) for size in found[1]]
    slopes = [(large - small) / (more - few) for small, large in zip(*found, strict=True)]
    return [(slope, max(0.0, small - few * slope)) for slope, small in zip(slopes, found[0], strict=True)]


def _kept(stage: Stage, x: Tensor, layers: Sequence[nn.Module]) -> list[int]:
    """What each piece adds to what autograd keeps for the whole chain: a tensor that two pieces save counts once, for
    the first of them. The images count for nobody."""
    alive: list[TensorTuple] = []
    added: list[int] = []
    with SavedTensors([*stage.parameters(), x]) as saved:

        def run(forward: Callable[[], TensorTuple]) -> TensorTuple:
            before = saved.now
            alive.append(forward())
            added.append(saved.now - before)
            return alive[-1]

        _chain(stage, x, layers, run)
    return added


def _chain(
    stage: Stage,
    x: Tensor,
    layers: Sequence[nn.Module],
    run: Callable[[Callable[[], TensorTuple]], TensorTuple],
) -> None:
    """Run the pieces in turn, each on what the one before returned, without its graph."""
    tensors: TensorTuple = (x,)
    for layer in layers:
        tensors = leaves(run(partial(stage.run_layers, layer, tensors[0], graph=True)))
    features = leaves(tuple(at_least_fp32(tensor) for tensor in tensors))
    state = initial_state(features, stage.num_classes)
    for i in stage.own_refiners:
        state = leaves(run(partial(stage.refine, i, features, state, graph=True)))
