"""The messages of features, and of their gradients. Each feature goes to the ranks whose refiners read it.

Where these are all ranks, a feature is one collective; else one message for each rank that reads it, and none where no
rank does.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sidpar.cascade.cascade import TensorTuple, is_differentiable
from sidpar.cascade.reads import Absent
from sidpar.cascade.specs import Spec
from sidpar.messages.wire import Pending, Wire, numbers
from sidpar.profiler.memory import bytes_of
from sidpar.schedules.batching import BatchLayout

Readers = Sequence[Sequence[int]] | None
"""Of each feature, the ranks that read it; None: all ranks, every feature."""
Gradients = Sequence[Tensor | None]
"""Of each differentiable feature; None of one that this rank does not read."""


class _Part(NamedTuple):
    """What is under way of one feature."""

    works: list[dist.Work | None]
    buffers: TensorTuple
    finish: Callable[[TensorTuple], Tensor]
    """Makes the result of the buffers, once all has come."""


class FeatureMessages(Wire):
    """From the ranks that extract to those that read, and back. `specs` are those of all features."""

    def broadcast_features(
        self, features: TensorTuple | None, specs: Sequence[Spec], batch: int, readers: Readers = None
    ) -> Pending:
        """Send the features [b, ...] of one microbatch from rank 0 to the ranks that read them; `features` is None on
        the other ranks."""
        own = [None] * len(specs) if features is None else map(self._to_wire, features)
        return self._together(map(self._broadcast, own, specs, [batch] * len(specs), self._ranks(readers, specs)))

    def gather_features(
        self, shard: TensorTuple, specs: Sequence[Spec], layout: BatchLayout, readers: Readers = None
    ) -> Pending:
        """Gather every rank's shard of the features on the ranks that read them: [B, ...] in batch order. Shards are
        padded to one size."""
        return self._together(
            self._gather(_padded(self._to_wire(own), layout.padded_shard), spec, layout, ranks)
            for own, spec, ranks in zip(shard, specs, self._ranks(readers, specs), strict=True)
        )

    def reduce_feature_gradient(
        self, gradient: Gradients, specs: Sequence[Spec], batch: int, readers: Readers = None
    ) -> Pending:
        """Sum the feature gradients [b, ...] of one microbatch over the ranks that read them, on rank 0; meaningless on
        the others."""
        return self._together(
            self._reduce(own, spec, batch, ranks)
            for own, (spec, ranks) in zip(gradient, self._trained(readers, specs), strict=True)
        )

    def scatter_feature_gradient(
        self, gradient: Gradients, specs: Sequence[Spec], layout: BatchLayout, m: int, readers: Readers = None
    ) -> Pending:
        """Sum the feature gradients [b, ...] of microbatch m over the ranks that read them, and give each rank the rows
        that it extracted."""
        return self._together(
            self._scatter(None if own is None else self._spread(self._to_wire(own), layout, m), spec, layout, m, ranks)
            for own, (spec, ranks) in zip(gradient, self._trained(readers, specs), strict=True)
        )

    def _broadcast(self, own: Tensor | None, spec: Spec, batch: int, ranks: Sequence[int]) -> _Part:
        group = self._cascade.features
        if len(ranks) == self._size:
            buffer = self._room((spec,), batch)[0] if own is None else own
            work = self._begin(dist.broadcast, buffer, group_src=0, group=group, async_op=True)
            self.traffic.count("feature broadcast", bytes_of((buffer,)))
            return _Part([work], (buffer,), self._first)
        if own is not None:
            peers = [rank for rank in ranks if rank != self._rank]
            works = [self._begin(dist.isend, own, group=group, group_dst=rank) for rank in peers]
            self.traffic.count("feature broadcast", len(peers) * bytes_of((own,)), len(peers))
            return _Part(works, (own,), self._first)
        if self._rank not in ranks:
            return self._absent(spec, batch)
        (buffer,) = self._room((spec,), batch)
        return _Part([self._begin(dist.irecv, buffer, group=group, group_src=0)], (buffer,), self._first)

    def _gather(self, own: Tensor, spec: Spec, layout: BatchLayout, ranks: Sequence[int]) -> _Part:
        group, reads = self._cascade.features, self._rank in ranks
        room = self._room((spec,), self._size * layout.padded_shard) if reads else ()
        if len(ranks) == self._size:
            works = [self._begin(dist.all_gather_into_tensor, *room, own, group=group, async_op=True)]
            self.traffic.count("feature gather", self._others * bytes_of(room))
        else:
            places = [numbers(place) for whole in room for place in whole.chunk(self._size)]
            works = [
                self._begin(
                    dist.gather,
                    own,
                    gather_list=places if rank == self._rank else None,
                    group_dst=rank,
                    group=group,
                    async_op=True,
                )
                for rank in ranks
            ]
            others = len(ranks) - reads
            self.traffic.count("feature gather", others * bytes_of((own,)), others)
        if not reads:
            absent = self._absent(spec, layout.rows).finish
            return _Part(works, (own,), absent)

        def in_batch_order(buffers: TensorTuple) -> Tensor:
            whole = buffers[0]
            if not layout.gathered_in_order:
                whole = whole.index_select(0, _gathered_index(layout, self._wire))
            return whole.to(self.device)

        return _Part(works, (*room, own), in_batch_order)

    def _reduce(self, own: Tensor | None, spec: Spec, batch: int, ranks: Sequence[int]) -> _Part:
        group = self._cascade.feature_gradients
        buffers = () if own is None else (self._to_wire(own),)
        if len(ranks) == self._size:
            works = [self._begin(dist.reduce, *buffers, group_dst=0, group=group, async_op=True)]
            self.traffic.count("feature gradient reduction", bytes_of(buffers))
            return _Part(works, buffers, self._first)
        if self._rank > 0:
            works = [self._begin(dist.isend, buffer, group=group, group_dst=0) for buffer in buffers]
            self.traffic.count("feature gradient reduction", bytes_of(buffers), len(works))
            return _Part(works, buffers, lambda _: spec.zeros(0, self.device))
        peers = [rank for rank in ranks if rank > 0]
        rooms = self._room((spec,) * len(peers), batch)
        works = [
            self._begin(dist.irecv, room, group=group, group_src=peer) for room, peer in zip(rooms, peers, strict=True)
        ]
        return _Part(works, (*buffers, *rooms), lambda parts: self._sum_of(parts, spec, batch))

    def _scatter(self, own: Tensor | None, spec: Spec, layout: BatchLayout, m: int, ranks: Sequence[int]) -> _Part:
        group, rows = self._cascade.feature_gradients, len(layout.parts[m][self._rank])
        buffers = () if own is None else (own,)
        if len(ranks) == self._size:
            room = self._room((spec,), layout.padded_part(m))
            works = [self._begin(dist.reduce_scatter_tensor, *room, *buffers, group=group, async_op=True)]
            self.traffic.count("feature gradient scatter", self._others * bytes_of(buffers))
        else:
            room = self._room((spec,) * len(ranks), layout.padded_part(m))
            parts = [numbers(part) for whole in buffers for part in whole.chunk(self._size)]
            works = [
                self._begin(
                    dist.scatter,
                    place,
                    scatter_list=parts if rank == self._rank else None,
                    group_src=rank,
                    group=group,
                    async_op=True,
                )
                for place, rank in zip(room, ranks, strict=True)
            ]
            self.traffic.count("feature gradient scatter", self._others * bytes_of(buffers), len(buffers))
        return _Part(
            works,
            (*room, *buffers),
            lambda tensors: self._sum_of([tensor[:rows] for tensor in tensors[: len(room)]], spec, rows),
        )

    def _ranks(self, readers: Readers, specs: Sequence[Spec]) -> Sequence[Sequence[int]]:
        return [range(self._size)] * len(specs) if readers is None else readers

    def _trained(self, readers: Readers, specs: Sequence[Spec]) -> list[tuple[Spec, Sequence[int]]]:
        """The features that have gradients, and who reads them."""
        travelling = zip(specs, self._ranks(readers, specs), strict=True)
        return [(spec, ranks) for spec, ranks in travelling if is_differentiable(spec.dtype)]

    def _absent(self, spec: Spec, batch: int) -> _Part:
        """Of a feature that this rank does not read."""
        return _Part([], (), lambda _: Absent.like((batch, *spec.shape), spec.dtype, self.device))

    def _first(self, buffers: TensorTuple) -> Tensor:
        return buffers[0].to(self.device)

    def _sum_of(self, tensors: Sequence[Tensor], spec: Spec, rows: int) -> Tensor:
        """In the order of ranks, so that it is the same each time."""
        if not tensors:
            return spec.zeros(rows, self.device)
        return torch.stack(list(tensors)).sum(0).to(self.device) if len(tensors) > 1 else tensors[0].to(self.device)

    def _together(self, parts: Iterable[_Part]) -> Pending:
        """One message for all features."""
        found = list(parts)
        ends = list(accumulate(len(part.buffers) for part in found))

        def finish(buffers: TensorTuple) -> TensorTuple:
            own = (buffers[end - len(part.buffers) : end] for part, end in zip(found, ends, strict=True))
            return tuple(part.finish(mine) for part, mine in zip(found, own, strict=True))

        works = [work for part in found for work in part.works]
        return Pending(works, tuple(buffer for part in found for buffer in part.buffers), self.traffic, finish)

    def _spread(self, gradient: Tensor, layout: BatchLayout, m: int) -> Tensor:
        """Rows of a microbatch to where reduce-scatter expects them: equal parts, the last ones padded with zeros."""
        if len(layout.microbatches[m]) == self._size * layout.padded_part(m):
            return gradient
        spread = gradient.new_zeros((self._size * layout.padded_part(m), *gradient.shape[1:]))
        spread[_scattered_index(layout, m, gradient.device)] = gradient
        return spread


@lru_cache(maxsize=64)
def _gathered_index(layout: BatchLayout, device: torch.device) -> Tensor:
    return torch.tensor(layout.gathered_rows, device=device)


@lru_cache(maxsize=256)
def _scattered_index(layout: BatchLayout, m: int, device: torch.device) -> Tensor:
    return torch.tensor(layout.scattered_rows(m), device=device)


def _padded(tensor: Tensor, rows: int) -> Tensor:
    if tensor.shape[0] == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((rows - tensor.shape[0], *tensor.shape[1:]))])
