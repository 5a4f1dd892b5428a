"""Every message of a step: one function each, with its peer, shape, dtype and order.

Nothing here waits: each function starts a message and returns a `Pending`, whose `wait` gives the result. Order, not
tags, matches messages (NCCL ignores tags): a schedule starts the messages of one group in the same order on both
sides. Tensors travel in the dtype of the features or the state, at least fp32. Multi-tensor features and states are
one message per tensor, in tuple order.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple
from sidpar.cascade.specs import Spec, specs_of
from sidpar.distributed.groups import CascadeGroups, Groups, ReplicaGroups
from sidpar.distributed.runtime import Runtime
from sidpar.profiler.memory import bytes_of
from sidpar.profiler.traffic import Traffic
from sidpar.schedules.batching import BatchLayout


@dataclass
class Pending:
    """A started message. `tensors` are the buffers it reads or writes: they must live until `wait` returns."""

    works: list[dist.Work | None]
    """None for what does not leave."""
    tensors: TensorTuple
    traffic: Traffic
    finish: Callable[[TensorTuple], TensorTuple] = tuple

    def __post_init__(self) -> None:
        self.traffic.occupy(bytes_of(self.tensors))

    def wait(self) -> TensorTuple:
        for work in self.works:
            if work is not None:
                work.wait()
        self.traffic.occupy(-bytes_of(self.tensors))
        return self.finish(self.tensors)


class Transport:
    """The messages of one rank. Peers are ranks of its own cascade, of which there are K."""

    def __init__(self, runtime: Runtime) -> None:
        assert runtime.groups is not None, "a world of one process sends no messages"
        self._groups: Groups = runtime.groups
        self._rank = runtime.cascade_rank
        self._size = runtime.cascade_size
        self.device = runtime.device
        self._wire = runtime.wire_device
        self._others = (self._size - 1) / self._size
        self._silent = False
        self.traffic = Traffic()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is sent within does not count as traffic."""
        traffic, self.traffic = self.traffic, Traffic()
        try:
            yield
        finally:
            self.traffic = traffic

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Within, messages are made ready as ever, but none leaves, and what comes is made up at once: uniform beliefs,
        and zeros. So a rank can go through a list of actions alone."""
        self._silent = True
        try:
            with self.uncounted():
                yield
        finally:
            self._silent = False

    @property
    def is_silent(self) -> bool:
        return self._silent

    def send_state(self, state: TensorTuple, peer: int) -> Pending:
        """The state of one microbatch to the next rank: [b, C] and hidden activations."""
        buffers = tuple(self._to_wire(tensor) for tensor in state)
        group = self._cascade.edge(self._rank, peer)
        works = [self._begin(dist.isend, t, group=group, group_dst=peer) for t in buffers]
        self.traffic.count("state", bytes_of(buffers), len(buffers))
        return Pending(works, buffers, self.traffic)

    def receive_state(self, specs: tuple[Spec, ...], batch: int, peer: int) -> Pending:
        """The state of one microbatch of `batch` rows from the previous rank."""
        buffers = self._room(specs, batch)
        if self._silent:
            buffers[0].fill_(-math.log(buffers[0].shape[-1]))
        group = self._cascade.edge(self._rank, peer)
        works = [self._begin(dist.irecv, t, group=group, group_src=peer) for t in buffers]
        return Pending(works, buffers, self.traffic, self._to_device)

    def broadcast_features(self, features: TensorTuple | None, specs: tuple[Spec, ...], batch: int) -> Pending:
        """Features [b, ...] of one microbatch from rank 0 to all; `features` is None on the others."""
        buffers = self._room(specs, batch) if features is None else tuple(map(self._to_wire, features))
        group = self._cascade.features
        works = [self._begin(dist.broadcast, t, group_src=0, group=group, async_op=True) for t in buffers]
        self.traffic.count("feature broadcast", bytes_of(buffers), len(buffers))
        return Pending(works, buffers, self.traffic, self._to_device)

    def gather_features(self, shard: TensorTuple, layout: BatchLayout) -> Pending:
        """Every rank's shard of the features to all ranks: [B, ...] in batch order. Shards are padded to one size."""
        inputs = tuple(_padded(self._to_wire(tensor), layout.padded_shard) for tensor in shard)
        outputs = self._room(specs_of(inputs), self._size * layout.padded_shard)
        group = self._cascade.features
        works = [
            self._begin(dist.all_gather_into_tensor, out, t, group=group, async_op=True)
            for out, t in zip(outputs, inputs, strict=True)
        ]
        self.traffic.count("feature gather", self._others * bytes_of(outputs), len(outputs))

        def in_batch_order(tensors: TensorTuple) -> TensorTuple:
            if layout.gathered_in_order:
                return self._to_device(tensors[: len(outputs)])
            rows = _gathered_index(layout, self._wire)
            return self._to_device(tuple(tensor.index_select(0, rows) for tensor in tensors[: len(outputs)]))

        return Pending(works, outputs + inputs, self.traffic, in_batch_order)

    def reduce_feature_gradient(self, gradient: TensorTuple) -> Pending:
        """Feature gradients [b, ...] of one microbatch, summed over ranks to rank 0; meaningless on the others."""
        buffers = tuple(self._to_wire(tensor) for tensor in gradient)
        group = self._cascade.feature_gradients
        works = [self._begin(dist.reduce, t, group_dst=0, group=group, async_op=True) for t in buffers]
        self.traffic.count("feature gradient reduction", bytes_of(buffers), len(buffers))
        return Pending(works, buffers, self.traffic, self._to_device)

    def scatter_feature_gradient(self, gradient: TensorTuple, layout: BatchLayout, m: int) -> Pending:
        """Feature gradients [b, ...] of microbatch m, summed over ranks, to each rank the rows that it extracted."""
        size = layout.padded_part(m)
        own = len(layout.parts[m][self._rank])
        inputs = tuple(self._spread(self._to_wire(tensor), layout, m) for tensor in gradient)
        outputs = self._room(specs_of(inputs), size)
        group = self._cascade.feature_gradients
        works = [
            self._begin(dist.reduce_scatter_tensor, out, t, group=group, async_op=True)
            for out, t in zip(outputs, inputs, strict=True)
        ]
        self.traffic.count("feature gradient scatter", self._others * bytes_of(inputs), len(inputs))
        return Pending(
            works,
            outputs + inputs,
            self.traffic,
            lambda tensors: self._to_device(tuple(t[:own] for t in tensors[: len(outputs)])),
        )

    def sum_refiner_gradients(self, bucket: Tensor) -> Pending:
        """A flat bucket of this rank's refiners' gradients, summed over replicas in place."""
        return self._sum(bucket, self._replicas.refiner_gradients, "refiner gradients")

    def sum_extractor_gradients(self, bucket: Tensor) -> Pending:
        """A flat bucket of the extractor's parameter gradients, summed in place over all ranks of all replicas."""
        return self._sum(bucket, self._groups.world, "parameter gradients")

    def sum_root_gradients(self, bucket: Tensor) -> Pending:
        """The same for an extractor that only the first rank of each replica holds."""
        return self._sum(bucket, self._replicas.root_gradients, "parameter gradients")

    def gather_statistics(self, row: Tensor, group: dist.ProcessGroup) -> Pending:
        """Each rank's [k] numbers about its rows to all ranks of the group: [n, k]."""
        wire, size = self._to_wire(row), group.size()
        rows = wire.new_empty(size * len(wire))
        work = self._begin(dist.all_gather_into_tensor, rows, wire, group=group, async_op=True)
        self.traffic.count("batch norm statistics", (size - 1) / size * bytes_of((rows,)))
        return Pending([work], (rows, wire), self.traffic, lambda _: (rows.view(size, -1).to(self.device),))

    def sum_statistics(self, sums: Tensor, group: dist.ProcessGroup) -> Pending:
        """[k] numbers for the gradients of statistics, summed over the ranks of the group in place."""
        return self._sum(sums, group, "batch norm gradients")

    def share_buffers(self, buffers: TensorTuple) -> None:
        """The first replica's running statistics to all others, in place, blocking."""
        for buffer in buffers:
            wire = self._to_wire(buffer)
            dist.broadcast(_numbers(wire), group_src=0, group=self._replicas.refiner_gradients)
            self.traffic.count("running statistics", bytes_of((wire,)))
            buffer.copy_(wire)

    def fetch(self, tensor: Tensor, owner: int) -> Tensor:
        """A tensor from `owner` > 0 to rank 0 of the first replica, blocking; only these two call it. `tensor` is the
        value or a buffer."""
        buffer = self._to_wire(tensor.detach())
        if self._rank == owner:
            dist.send(_numbers(buffer), group_dst=0, group=self._groups.world)
        else:
            dist.recv(_numbers(buffer), group_src=owner, group=self._groups.world)
        return buffer

    @property
    def _cascade(self) -> CascadeGroups:
        assert self._groups.cascade is not None, "a cascade on one rank sends no messages within it"
        return self._groups.cascade

    @property
    def _replicas(self) -> ReplicaGroups:
        assert self._groups.replicas is not None, "a schedule for one replica sums over no others"
        return self._groups.replicas

    def _sum(self, bucket: Tensor, group: dist.ProcessGroup, kind: str) -> Pending:
        buffer = bucket.to(self._wire)
        work = self._begin(dist.all_reduce, buffer, group=group, async_op=True)
        self.traffic.count(kind, 2 * (group.size() - 1) / group.size() * bytes_of((buffer,)))

        def write_back(_: TensorTuple) -> TensorTuple:
            if buffer is not bucket:
                bucket.copy_(buffer)
            return (bucket,)

        # Where the bucket itself travels it is a gradient, and no buffer besides.
        return Pending([work], () if buffer is bucket else (buffer,), self.traffic, write_back)

    def _begin(self, call: Callable[..., dist.Work | None], *buffers: Tensor, **where: Any) -> dist.Work | None:
        """Start a message of contiguous buffers; None if it is not to leave."""
        if self._silent:
            return None
        work = call(*map(_numbers, buffers), **where)
        assert work is not None, "an asynchronous call returns its Work on every rank of the group"
        return work

    def _room(self, specs: tuple[Spec, ...], rows: int) -> TensorTuple:
        """Buffers for what will come."""
        return tuple((spec.zeros if self._silent else spec.empty)(rows, self._wire) for spec in specs)

    def _spread(self, gradient: Tensor, layout: BatchLayout, m: int) -> Tensor:
        """Rows of a microbatch to where reduce-scatter expects them: equal parts, the last ones padded with zeros."""
        if len(layout.microbatches[m]) == self._size * layout.padded_part(m):
            return gradient
        spread = gradient.new_zeros((self._size * layout.padded_part(m), *gradient.shape[1:]))
        spread[_scattered_index(layout, m, gradient.device)] = gradient
        return spread

    def _to_wire(self, tensor: Tensor) -> Tensor:
        """Contiguous in the memory that messages are sent from."""
        return tensor.to(self._wire).resolve_conj().resolve_neg().contiguous()

    def _to_device(self, tensors: TensorTuple) -> TensorTuple:
        return tuple(tensor.to(self.device) for tensor in tensors)


@lru_cache(maxsize=64)
def _gathered_index(layout: BatchLayout, device: torch.device) -> Tensor:
    return torch.tensor(layout.gathered_rows, device=device)


@lru_cache(maxsize=256)
def _scattered_index(layout: BatchLayout, m: int, device: torch.device) -> Tensor:
    return torch.tensor(layout.scattered_rows(m), device=device)


def _numbers(tensor: Tensor) -> Tensor:
    """A contiguous tensor as messages send it: a complex number, which NCCL does not know, as two real ones."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _padded(tensor: Tensor, rows: int) -> Tensor:
    if tensor.shape[0] == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((rows - tensor.shape[0], *tensor.shape[1:]))])
