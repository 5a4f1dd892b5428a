"""Who stands in for the other ranks where a rank goes through a forward alone."""

from torch import Tensor


class SameRows:
    """n ranks with the same rows: their statistics are those of the rows here."""

    counts = True

    def __init__(self, number: int) -> None:
        self._number = number

    def gather(self, row: Tensor) -> Tensor:
        return row.repeat(self._number, 1)

    def sum(self, sums: Tensor) -> Tensor:
        return sums * self._number


class Recorded:
    """A forward of all rows first; then forwards of parts of them, which get the statistics of all. No backwards."""

    counts = True

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._next: int | None = None

    def replay(self) -> None:
        """What comes is a forward of a part."""
        self._next = 0

    def gather(self, row: Tensor) -> Tensor:
        if self._next is None:
            self._rows.append(row)
            return row.unsqueeze(0)
        if self._next == len(self._rows) or self._rows[self._next].shape != row.shape:
            raise RuntimeError(
                "a forward of a part of the rows normalises more often, or something else, than one of all"
            )
        self._next += 1
        return self._rows[self._next - 1].unsqueeze(0)

    def sum(self, sums: Tensor) -> Tensor:
        raise NotImplementedError("a forward that is replayed has no backward")
