"""Sends the first message of each kind and size, before training sends messages while ranks compute."""

from collections.abc import Iterable

from sidpar.cascade.cascade import is_differentiable
from sidpar.cascade.specs import CascadeSpecs
from sidpar.distributed.groups import neighbours
from sidpar.messages.gradients import GradientBuckets
from sidpar.messages.transport import Transport
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.rank_view import RankView


def send_first(
    transport: Transport,
    view: RankView,
    layout: BatchLayout,
    specs: CascadeSpecs,
    buckets: Iterable[GradientBuckets] = (),
    *,
    training: bool,
) -> None:
    """Send everything that a batch of this layout sends, once in each size, as zeros, one message after another. All
    ranks call it.

    NCCL makes connections by kind and size of a message, on the host, and loads kernels of its own: which may wait for
    the device, and so for the messages under way.
    """
    with transport.uncounted():
        microbatches = {len(rows): m for m, rows in enumerate(layout.microbatches)}
        if view.shares_features:
            _send_features(transport, view, layout, specs, list(microbatches))
        if view.shares_features and view.trains_extractor and training:
            for m in microbatches.values():
                _send_feature_gradient(transport, view, layout, specs, m)
        if view.passes_states or not training:
            for rows in microbatches:
                _send_states(transport, view, specs, rows)
        for each in buckets:
            each.send_first()


def _send_features(
    transport: Transport, view: RankView, layout: BatchLayout, specs: CascadeSpecs, sizes: Iterable[int]
) -> None:
    device = transport.device
    if view.placement.extractor == "sharded":
        shard = tuple(spec.zeros(layout.shard_sizes[view.rank], device) for spec in specs.features)
        transport.gather_features(shard, specs.features, layout, view.readers).wait()
        return
    for rows in sizes:
        features = tuple(spec.zeros(rows, device) for spec in specs.features)
        transport.broadcast_features(features if view.rank == 0 else None, specs.features, rows, view.readers).wait()


def _send_feature_gradient(
    transport: Transport, view: RankView, layout: BatchLayout, specs: CascadeSpecs, m: int
) -> None:
    rows, read = len(layout.microbatches[m]), view.readers or [range(view.placement.num_ranks)] * len(specs.features)
    gradient = [
        spec.zeros(rows, transport.device) if view.rank in ranks else None
        for spec, ranks in zip(specs.features, read, strict=True)
        if is_differentiable(spec.dtype)
    ]
    if view.placement.extractor == "sharded":
        transport.scatter_feature_gradient(gradient, specs.features, layout, m, view.readers).wait()
    else:
        transport.reduce_feature_gradient(gradient, specs.features, rows, view.readers).wait()


def _send_states(transport: Transport, view: RankView, specs: CascadeSpecs, rows: int) -> None:
    for sender, receiver in neighbours(view.placement.num_ranks):
        state = specs.states[view.placement.refiners(receiver).start]
        if view.rank == sender:
            transport.send_state(tuple(spec.zeros(rows, transport.device) for spec in state), receiver).wait()
        elif view.rank == receiver:
            transport.receive_state(state, rows, sender).wait()
