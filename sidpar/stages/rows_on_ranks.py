"""Rows of a batch of which each rank has some, for the trials before the first step, which look at a few of all."""

import io
from collections.abc import Sequence

import torch
from torch import Tensor

from sidpar.stages.stage import Stage


class RowsOnRanks:
    """In place of a tensor [b, ...] of inputs: a slice of it is put together through the store, which all ranks call
    alike. A rank that never extracts gets zeros, which it does not look at.

    Args:
        x: all b inputs, or those that are here, in order.
        rows: which rows each rank of the cascade has, ascending.
    """

    def __init__(self, stage: Stage, x: Tensor, size: int, rows: Sequence[Sequence[int]]) -> None:
        self._stage, self._x, self._size, self._rows = stage, x, size, rows

    @property
    def shape(self) -> torch.Size:
        """[b, ...]"""
        return torch.Size((self._size, *self._x.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self._x.dtype

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, wanted: slice) -> Tensor:
        if self._divided:
            return self._put_together(range(self._size)[wanted])
        if len(self._x) == self._size:
            return self._x[wanted]
        return self._x.new_zeros(()).expand(self.shape)[wanted]

    @property
    def _divided(self) -> bool:
        """Whether some rank that extracts has not all rows: of all replicas alike."""
        placement, layers = self._stage.placement, len(self._stage.layer_names)
        return any(
            len(rows) < self._size and 0 in placement.extractor_layers(rank, layers)
            for rank, rows in enumerate(self._rows)
        )

    def _put_together(self, wanted: range) -> Tensor:
        runtime = self._stage.runtime
        owner: dict[int, int] = {}
        for rank, rows in enumerate(self._rows):
            for row in rows:
                owner.setdefault(row, rank)
        owned = {rank: [k for k, row in enumerate(wanted) if owner[row] == rank] for rank in set(owner.values())}
        notes = runtime.notes("rows of a trial")
        assert notes is not None, "one rank alone has all rows"
        for rank, places in owned.items():
            if rank == runtime.cascade_rank and places:
                buffer = io.BytesIO()
                torch.save(self._here([wanted[k] for k in places]), buffer)
                notes.leave(f"replica {runtime.replica}, rank {rank}", buffer.getvalue())
        found = self._x.new_empty((len(wanted), *self._x.shape[1:]))
        for rank, places in owned.items():
            if places:
                note = io.BytesIO(notes.read(f"replica {runtime.replica}, rank {rank}"))
                found[places] = torch.load(note, map_location=self._x.device, weights_only=True)
        runtime.exchange("rows of a trial", "read")
        notes.remove()
        return found

    def _here(self, rows: list[int]) -> Tensor:
        if len(self._x) == self._size:
            return self._x[rows]
        own = list(self._rows[self._stage.runtime.cascade_rank])
        return self._x[[own.index(row) for row in rows]]
