"""The messages of a step: one function each, with its peer, shape, dtype and order.

Nothing here waits: each function starts a message and returns a `Pending`, whose `wait` gives the result. Order, not
tags, matches messages (NCCL ignores tags): a schedule starts the messages of one group in the same order on both
sides. Tensors travel in the dtype of the features or the state, at least fp32. Multi-tensor features and states are
one message per tensor, in tuple order.
"""

import math

import torch.distributed as dist
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple
from sidpar.cascade.specs import Spec
from sidpar.distributed.groups import ReplicaGroups
from sidpar.messages.features import FeatureMessages
from sidpar.messages.wire import Pending, numbers
from sidpar.profiler.memory import bytes_of


class Transport(FeatureMessages):
    """The messages of one rank. Peers are ranks of its own cascade, of which there are K."""

    def send_state(self, state: TensorTuple, peer: int) -> Pending:
        """Send the state of one microbatch to the next rank: [b, C] and hidden activations."""
        buffers = tuple(self._to_wire(tensor) for tensor in state)
        group = self._cascade.edge(self._rank, peer)
        works = [self._begin(dist.isend, t, group=group, group_dst=peer) for t in buffers]
        self.traffic.count("state", bytes_of(buffers), len(buffers))
        return Pending(works, buffers, self.traffic)

    def receive_state(self, specs: tuple[Spec, ...], batch: int, peer: int) -> Pending:
        """Receive the state of one microbatch of `batch` rows from the previous rank."""
        buffers = self._room(specs, batch)
        if self._silent:
            buffers[0].fill_(-math.log(buffers[0].shape[-1]))
        group = self._cascade.edge(self._rank, peer)
        works = [self._begin(dist.irecv, t, group=group, group_src=peer) for t in buffers]
        return Pending(works, buffers, self.traffic, self._to_device)

    def sum_refiner_gradients(self, bucket: Tensor) -> Pending:
        """Sum a flat bucket of this rank's refiners' gradients over replicas, in place."""
        return self._sum(bucket, self._replicas.refiner_gradients, "refiner gradients")

    def sum_extractor_gradients(self, bucket: Tensor) -> Pending:
        """Sum a flat bucket of the extractor's parameter gradients over all ranks of all replicas, in place."""
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
        """Copy the first replica's running statistics to all other replicas, in place; blocks."""
        for buffer in buffers:
            wire = self._to_wire(buffer)
            dist.broadcast(numbers(wire), group_src=0, group=self._replicas.refiner_gradients)
            self.traffic.count("running statistics", bytes_of((wire,)))
            buffer.copy_(wire)

    def fetch(self, tensor: Tensor, owner: int) -> Tensor:
        """Send a tensor from rank `owner` > 0 to rank 0 of the first replica; blocks. Only these two ranks call it.
        `tensor` is the value or a buffer."""
        buffer = self._to_wire(tensor.detach())
        if self._rank == owner:
            dist.send(numbers(buffer), group_dst=0, group=self._groups.world)
        else:
            dist.recv(numbers(buffer), group_src=owner, group=self._groups.world)
        return buffer

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
