"""What batch norms tell other ranks about their rows. Unlike other messages, these are awaited within a forward or a
backward: all ranks of the group come to them in the same order (`schedules/synchronous.py`, rule 4)."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from sidpar.cascade.batch_norm.stand_ins import SameRows
from sidpar.messages.transport import Transport


class Statistics:
    """The ranks of a group, for the batch norms of one part in one batch; a `Sharing`.

    Args:
        counts: whether this rank's rows count. It takes part in any case.
    """

    def __init__(self, transport: Transport, group: dist.ProcessGroup, *, counts: bool) -> None:
        self._transport, self._group, self._counts = transport, group, counts
        self._made_up = SameRows(group.size())

    @property
    def counts(self) -> bool:
        """In a rehearsal, where the others are made up, they do."""
        return self._counts or self._transport.is_silent

    def gather(self, row: Tensor) -> Tensor:
        if self._transport.is_silent:
            return self._made_up.gather(row)
        (rows,) = self._transport.gather_statistics(row, self._group).wait()
        return rows

    def sum(self, sums: Tensor) -> Tensor:
        if self._transport.is_silent:
            return self._made_up.sum(sums)
        (total,) = self._transport.sum_statistics(sums.clone(), self._group).wait()
        return total

    def send_first(self, channels: Iterable[tuple[int, torch.dtype]]) -> None:
        """Both messages of batch norms with so many channels and statistics of this dtype, of zeros, one by one: once
        in each size, before any that a rank works beside (`rehearsal.py`)."""
        with self._transport.uncounted():
            for number, dtype in sorted(set(channels), key=str):
                row = torch.zeros(2 * number + 1, dtype=dtype, device=self._transport.device)
                self.gather(row)
                self.sum(row[1:])
