"""Which rank holds which refiners, and where the extractor is (DESIGN section 4). Pure arithmetic, no torch.

Refiners are numbered i = 0..L-1 here, as in the parameter names (`refiners.0.…`); refiner i turns the
belief p_i into p_{i+1}.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, get_args

import numpy as np

from sidpar.choices import ExtractorPlacement
from sidpar.errors import UsageError


class Holding(Protocol):
    """Who holds what: a `Placement`, `Copies`, or the `Cut` of a pipeline."""

    @property
    def num_ranks(self) -> int: ...

    @property
    def num_refiners(self) -> int: ...

    @property
    def extractor(self) -> str: ...

    def refiners(self, rank: int) -> Sequence[int]:
        """The refiners that `rank` holds, in cascade order."""

    def extractor_layers(self, rank: int, total: int) -> Sequence[int]:
        """Which of the extractor's `total` layers `rank` holds."""


@dataclass(frozen=True)
class Copies:
    """Every rank holds the whole cascade: data parallelism, or one process."""

    num_refiners: int
    num_ranks: int
    extractor: str = "whole"

    def refiners(self, rank: int) -> range:
        return range(self.num_refiners)

    def extractor_layers(self, rank: int, total: int) -> range:
        return range(total)


@dataclass(frozen=True)
class Placement:
    """Contiguous runs of refiners, one run per rank in cascade order, and the extractor's placement.

    `counts[r]` is the number of refiners on rank r, so every refiner is placed exactly once by construction.
    """

    counts: tuple[int, ...]
    extractor: ExtractorPlacement = "sharded"

    def __post_init__(self) -> None:
        if self.extractor not in get_args(ExtractorPlacement):
            raise UsageError(
                f"extractor placement {self.extractor!r} is unknown; choose one of {get_args(ExtractorPlacement)}"
            )
        if not self.counts or min(self.counts) < 1:
            raise UsageError(f"every rank needs at least one refiner, but the placement is {list(self.counts)}")

    @property
    def num_ranks(self) -> int:
        return len(self.counts)

    @property
    def num_refiners(self) -> int:
        return sum(self.counts)

    def refiners(self, rank: int) -> range:
        """The refiners that `rank` holds."""
        start = sum(self.counts[:rank])
        return range(start, start + self.counts[rank])

    def holds_extractor(self, rank: int) -> bool:
        return self.extractor != "root" or rank == 0

    def extractor_layers(self, rank: int, total: int) -> range:
        """All layers or none: here the extractor is never taken apart."""
        return range(total if self.holds_extractor(rank) else 0)


def even_split(total: int, parts: int) -> list[int]:
    """Sizes of `parts` shares of `total` that differ by at most one, the larger first; shares may be 0."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


def consecutive(sizes: Sequence[int]) -> list[range]:
    """The consecutive ranges that shares of these sizes cover."""
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def place_by_count(num_refiners: int, num_ranks: int) -> tuple[int, ...]:
    """As many refiners on each rank as on any other, give or take one."""
    _check_enough(num_refiners, num_ranks)
    return tuple(even_split(num_refiners, num_ranks))


def place_as_given(counts: Sequence[int], num_refiners: int, num_ranks: int) -> tuple[int, ...]:
    """The user's own counts, checked against the cascade and the world."""
    _check_enough(num_refiners, num_ranks)
    if len(counts) != num_ranks or sum(counts) != num_refiners or min(counts) < 1:
        raise UsageError(
            f"placement {list(counts)} has {len(counts)} ranks and {sum(counts)} refiners, but {num_refiners} refiners "
            f"go on {num_ranks} ranks: give {num_ranks} numbers of at least 1 that add up to {num_refiners}"
        )
    return tuple(counts)


def place_by_cost(costs: Sequence[float], num_ranks: int, base_loads: Sequence[float] | None = None) -> tuple[int, ...]:
    """The contiguous placement whose busiest rank has the least possible load.

    `costs[i]` is the cost of refiner i; `base_loads[r]` is what rank r does besides (a `root` extractor, say).
    Exact, by dynamic programming over (rank, refiners placed so far): O(K L^2), vectorised over L^2.
    """
    _check_enough(len(costs), num_ranks)
    if any(not cost >= 0 for cost in costs):
        raise UsageError(f"costs must be numbers >= 0, got {list(costs)}")
    base = list(base_loads or [0.0] * num_ranks)
    total = np.concatenate([[0.0], np.cumsum(costs)])
    places = np.arange(len(total))
    # load[j, n]: refiners j..n-1 on one rank, which needs at least one.
    load = np.where(places[:, None] < places, total - total[:, None], np.inf)
    best = base[0] + load[0]  # best[n]: least maximum load of the ranks so far when they hold the first n refiners
    starts = []
    for rank in range(1, num_ranks):
        candidates = np.maximum(best[:, None], base[rank] + load)
        starts.append(candidates.argmin(0))
        best = candidates.min(0)

    ends = [len(costs)]
    for start in reversed(starts):
        ends.append(int(start[ends[-1]]))
    return tuple(end - begin for begin, end in pairwise([0, *reversed(ends)]))


def _check_enough(num_refiners: int, num_ranks: int) -> None:
    if num_refiners < num_ranks:
        raise UsageError(
            f"{num_refiners} refiners cannot be placed on {num_ranks} ranks, each of which needs at least one: "
            f"start at most {num_refiners} ranks, or set model.num_refiners to at least {num_ranks}"
        )
