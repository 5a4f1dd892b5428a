"""The inputs of a batch, or only those of its rows that a rank needs: what a loader makes and an engine takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sidpar.errors import UsageError


@dataclass(frozen=True)
class InputRows:
    """Some rows of a batch's inputs, in place of all; it has the shape, the dtype and the length of all of them.

    Args:
        x: the inputs that are here, [n, ...]; n may be 0.
        rows: which rows of the batch these are, in ascending order.
        batch_size: the size B of the whole batch.

    Raises:
        UsageError: there are not as many numbers as inputs, or they are not ascending within the batch.
    """

    x: Tensor
    """[n, ...]"""
    rows: Sequence[int]
    """Their positions in the batch."""
    batch_size: int
    """B."""

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.rows, self.rows[1:], strict=False))
        inside = not self.rows or (self.rows[0] >= 0 and self.rows[-1] < self.batch_size)
        if len(self.rows) != len(self.x) or not ascending or not inside:
            raise UsageError(
                f"InputRows needs the numbers of its {len(self.x)} rows, ascending within 0..{self.batch_size - 1}, "
                f"got {_in_words(self.rows)}"
            )

    @property
    def shape(self) -> torch.Size:
        """[B, ...]"""
        return torch.Size((self.batch_size, *self.x.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """That of the inputs."""
        return self.x.dtype

    def __len__(self) -> int:
        return self.batch_size

    def lacks(self, rows: Sequence[int]) -> str | None:
        """What is missing where these rows are needed, in words; None if nothing is.

        Args:
            rows: positions in the batch.
        """
        missing = [row for row in rows if row not in self._places]
        if not missing:
            return None
        return (
            f"of a batch of {self.batch_size}, this rank needs the inputs of {_in_words(rows)}, but is given "
            f"{_in_words(self.rows)}: give it those that engine.rows_needed tells"
        )

    def take(self, rows: Sequence[int]) -> Tensor:
        """The inputs of some rows, [n, ...].

        Args:
            rows: positions in the batch, in ascending order.

        Raises:
            UsageError: some of them are not here.
        """
        if (problem := self.lacks(rows)) is not None:
            raise UsageError(problem)
        return pick(self.x, [self._places[row] for row in rows])

    @cached_property
    def _places(self) -> dict[int, int]:
        return {row: place for place, row in enumerate(self.rows)}


Inputs: TypeAlias = Tensor | InputRows
"""Of a whole batch [B, ...], or of some of its rows."""


def whole(x: Inputs) -> Tensor:
    """All rows [B, ...]. Raises UsageError if some are not here."""
    return x if isinstance(x, Tensor) else x.take(range(len(x)))


class RowsNeeded(Protocol):
    """Tells of a batch of B which rows a rank needs the inputs of, ascending."""

    def __call__(self, batch_size: int, *, training: bool) -> Sequence[int]: ...


def all_rows(batch_size: int, *, training: bool) -> Sequence[int]:
    """Those that one process needs."""
    return range(batch_size)


def pick(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a tensor, ascending; without a copy where they are consecutive, so that pinned memory stays so."""
    if rows and rows[-1] - rows[0] + 1 == len(rows):
        return tensor[rows[0] : rows[-1] + 1]
    return tensor[torch.as_tensor(rows, dtype=torch.int64, device=tensor.device)]


def _in_words(rows: Sequence[int]) -> str:
    if not rows:
        return "no row"
    runs = [[rows[0], rows[0]]]
    for row in rows[1:]:
        if row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    spoken = [f"{first}..{last}" if last > first else f"{first}" for first, last in runs]
    if len(spoken) > 6:
        spoken = [*spoken[:5], f"... ({len(rows)} in all)"]
    return f"rows {', '.join(spoken)}"
