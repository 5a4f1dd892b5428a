"""Which rank holds which refiners, and where the extractor is (DESIGN section 4). Pure arithmetic, no torch.

Refiners are numbered i = 0..L-1 here, as in the parameter names (`refiners.0.…`); refiner i turns the
belief p_i into p_{i+1}.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

ExtractorPlacement = Literal["replicated", "root", "sharded"]


@dataclass(frozen=True)
class Placement:
    """Contiguous runs of refiners, one run per rank in cascade order, and the extractor's placement.

    `counts[r]` is the number of refiners on rank r, so every refiner is placed exactly once by construction.
    """

    counts: tuple[int, ...]
    extractor: ExtractorPlacement = "sharded"

    def __post_init__(self) -> None:
        if self.extractor not in get_args(ExtractorPlacement):
            raise ValueError(
                f"extractor placement {self.extractor!r} is unknown; choose one of {get_args(ExtractorPlacement)}"
            )
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"every rank needs at least one refiner, but the placement is {list(self.counts)}")

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

    def owner(self, refiner: int) -> int:
        """The rank that holds `refiner`."""
        return next(rank for rank in range(self.num_ranks) if refiner in self.refiners(rank))

    def holds_extractor(self, rank: int) -> bool:
        return self.extractor != "root" or rank == 0


def even_split(total: int, parts: int) -> list[int]:
    """Sizes of `parts` shares of `total` that differ by at most one, the larger first; shares may be 0."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


def offsets(sizes: Sequence[int]) -> list[range]:
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
        raise ValueError(
            f"placement {list(counts)} has {len(counts)} ranks and {sum(counts)} refiners, but {num_refiners} refiners "
            f"go on {num_ranks} ranks: give {num_ranks} numbers of at least 1 that add up to {num_refiners}"
        )
    return tuple(counts)


def place_by_cost(costs: Sequence[float], num_ranks: int, base_loads: Sequence[float] | None = None) -> tuple[int, ...]:
    """The contiguous placement whose busiest rank has the least possible load.

    `costs[i]` is the cost of refiner i; `base_loads[r]` is what rank r does besides (a `root` extractor, say).
    Exact: best[k][n] = min over j of max(best[k-1][j], load of refiners j..n-1 on rank k), found by bisection,
    because the first term rises and the second falls with j; O(K L log L).
    """
    _check_enough(len(costs), num_ranks)
    if any(cost < 0 or cost != cost for cost in costs):
        raise ValueError(f"costs must be numbers >= 0, got {list(costs)}")
    base = list(base_loads or [0.0] * num_ranks)
    total = [0.0, *accumulate(costs)]
    num_refiners = len(costs)

    best = [base[0] + total[n] for n in range(num_refiners + 1)]
    cuts: list[list[int]] = []  # cuts[k-1][n]: where rank k starts when the first n refiners are on ranks 0..k
    for rank in range(1, num_ranks):
        row, cut_row = [float("inf")] * (num_refiners + 1), [0] * (num_refiners + 1)
        for n in range(rank + 1, num_refiners + 1):
            low, high = (
                rank,
                n - 1,
            )  # ranks before this one hold at least `rank` refiners, this one at least 1
            while low < high:
                middle = (low + high) // 2
                if best[middle] >= base[rank] + total[n] - total[middle]:
                    high = middle
                else:
                    low = middle + 1
            start = min(
                (j for j in (low - 1, low) if j >= rank),
                key=lambda j: max(best[j], base[rank] + total[n] - total[j]),
            )
            row[n], cut_row[n] = max(best[start], base[rank] + total[n] - total[start]), start
        best = row
        cuts.append(cut_row)

    counts, end = [], num_refiners
    for cut_row in reversed(cuts):
        counts.append(end - cut_row[end])
        end = cut_row[end]
    return (end, *reversed(counts))


def _check_enough(num_refiners: int, num_ranks: int) -> None:
    if num_refiners < num_ranks:
        raise ValueError(
            f"{num_refiners} refiners cannot be placed on {num_ranks} ranks, each of which needs at least one: "
            f"start at most {num_refiners} ranks, or set model.num_refiners to at least {num_ranks}"
        )
