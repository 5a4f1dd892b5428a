"""Which rank holds which refiners, and where the extractor is. Pure arithmetic, no torch.

Refiners are numbered i = 0..L-1 here, as in the parameter names (`refiners.0.…`); refiner i turns the
belief p_i into p_{i+1}.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol, get_args

from sidpar.config.groups.choices import ExtractorPlacement
from sidpar.errors import UsageError

_PRECISION = 1e-9


class Holding(Protocol):
    """Which rank holds which modules: a `Placement`, `Copies`, or the `Cut` of a pipeline."""

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
    """L."""
    num_ranks: int
    """K."""
    extractor: str = "whole"
    """Always `whole`: every rank holds the whole extractor."""

    def refiners(self, rank: int) -> range:
        """The refiners that `rank` holds: all."""
        return range(self.num_refiners)

    def extractor_layers(self, rank: int, total: int) -> range:
        """Which of the extractor's `total` layers `rank` holds: all."""
        return range(total)


@dataclass(frozen=True)
class Placement:
    """Local learning: consecutive refiners on each rank, in cascade order, and the extractor's placement.

    `counts[r]` is the number of refiners on rank r.

    Raises:
        UsageError: a rank has no refiner, or the extractor's placement is unknown.
    """

    counts: tuple[int, ...]
    """Refiners of each rank, at least one."""
    extractor: ExtractorPlacement = "sharded"
    """`replicated`: every rank computes the features of the whole batch; `root`: rank 0 does; `sharded`: each rank
    those of its share of the batch."""

    def __post_init__(self) -> None:
        if self.extractor not in get_args(ExtractorPlacement):
            raise UsageError(
                f"extractor placement {self.extractor!r} is unknown; choose one of {get_args(ExtractorPlacement)}"
            )
        if not self.counts or min(self.counts) < 1:
            raise UsageError(f"every rank needs at least one refiner, but the placement is {list(self.counts)}")

    @property
    def num_ranks(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def num_refiners(self) -> int:
        """L."""
        return sum(self.counts)

    def refiners(self, rank: int) -> range:
        """The refiners that `rank` holds."""
        return self._runs[rank]

    @cached_property
    def _runs(self) -> list[range]:
        return consecutive(self.counts)

    def holds_extractor(self, rank: int) -> bool:
        """Whether `rank` computes features."""
        return self.extractor != "root" or rank == 0

    def extractor_layers(self, rank: int, total: int) -> range:
        """All layers or none, since local learning never cuts the extractor."""
        return range(total if self.holds_extractor(rank) else 0)


def even_split(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` sizes that differ by at most one, the larger ones first; sizes may be 0."""
    share, rest = divmod(total, parts)
    return [share + (part < rest) for part in range(parts)]


def consecutive(sizes: Sequence[int]) -> list[range]:
    """The consecutive ranges that shares of these sizes cover."""
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def place_by_count(num_refiners: int, num_ranks: int) -> tuple[int, ...]:
    """Refiners per rank, as even as possible."""
    _check_enough(num_refiners, num_ranks)
    return tuple(even_split(num_refiners, num_ranks))


def place_as_given(counts: Sequence[int], num_refiners: int, num_ranks: int) -> tuple[int, ...]:
    """The user's own counts, checked against the numbers of refiners and ranks."""
    _check_enough(num_refiners, num_ranks)
    if len(counts) != num_ranks or sum(counts) != num_refiners or min(counts) < 1:
        raise UsageError(
            f"placement {list(counts)} has {len(counts)} ranks and {sum(counts)} refiners, but {num_refiners} refiners "
            f"go on {num_ranks} ranks: give {num_ranks} numbers of at least 1 that add up to {num_refiners}"
        )
    return tuple(counts)


def place_by_cost(costs: Sequence[float], num_ranks: int, first_load: float = 0.0) -> tuple[int, ...]:
    """Refiners per rank such that the rank with the highest load has as little as possible, and the others are as even
    as that allows.

    Found to nine digits by bisection over the load that no rank may exceed, in O(K log L) for each digit.

    Args:
        costs: of each refiner, at least 0, in any unit.
        num_ranks: K.
        first_load: cost of other work on rank 0, in the same unit: a `root` extractor, for example.

    Returns:
        Refiners of each rank: the `counts` of a `Stage` or a `Placement`.

    Raises:
        UsageError: there are fewer refiners than ranks, or a cost is negative or NaN.
    """
    _check_enough(len(costs), num_ranks)
    if any(not cost >= 0 for cost in costs):
        raise UsageError(f"costs must be numbers >= 0, got {list(costs)}")
    total = [first_load, *(first_load + cost for cost in accumulate(costs))]  # total[i]: what comes before refiner i
    total[0] = 0.0  # rank 0 holds refiner 0 in any case, so its load besides counts as that one's
    low, limit = max([total[1], *costs[1:]]), total[-1]
    while limit - low > _PRECISION * limit:
        middle = (low + limit) / 2
        if _earliest_starts(total, num_ranks, middle) is None:
            low = middle
        else:
            limit = middle
    earliest = _earliest_starts(total, num_ranks, limit)
    assert earliest is not None, "the first limit is enough for everything on one rank"

    starts = [0]
    for rank in range(1, num_ranks):
        here, later = total[starts[-1]], num_ranks - rank
        fair = bisect_left(total, here + (total[-1] - here) / (later + 1))
        furthest = bisect_right(total, here + limit) - 1
        starts.append(max(min(fair, furthest, len(costs) - later), earliest[rank], starts[-1] + 1))
    return tuple(end - start for start, end in pairwise([*starts, len(costs)]))


def _earliest_starts(total: Sequence[float], num_ranks: int, limit: float) -> list[int] | None:
    """`starts[r]`: the first refiner of rank r if it and the ranks behind it take as many as the limit allows, and
    leave one for each rank before. None if they cannot take all."""
    starts, end = [], len(total) - 1
    for rank in reversed(range(num_ranks)):
        end = max(bisect_left(total, total[end] - limit), rank)
        starts.append(end)
    return starts[::-1] if end == 0 else None


def _check_enough(num_refiners: int, num_ranks: int) -> None:
    if num_refiners < num_ranks:
        raise UsageError(
            f"{num_refiners} refiners cannot be placed on {num_ranks} ranks, each of which needs at least one: "
            f"start at most {num_refiners} ranks, or set model.num_refiners to at least {num_ranks}"
        )
