"""Every refiner exactly once, and the least possible maximum load."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidpar.schedules.placement import Placement, even_split, place_as_given, place_by_cost, place_by_count


def every_placement(num_refiners: int, num_ranks: int) -> list[tuple[int, ...]]:
    cuts = combinations(range(1, num_refiners), num_ranks - 1)
    return [tuple(b - a for a, b in zip((0, *cut), (*cut, num_refiners), strict=True)) for cut in cuts]


def max_load(counts: tuple[int, ...], costs: list[float], first: float) -> float:
    placement = Placement(counts)
    return max(first * (r == 0) + sum(costs[i] for i in placement.refiners(r)) for r in range(len(counts)))


@given(st.integers(1, 40), st.integers(1, 40))
def test_by_count_places_every_refiner_once(num_refiners: int, num_ranks: int) -> None:
    if num_refiners < num_ranks:
        with pytest.raises(ValueError, match=f"{num_refiners} refiners cannot be placed on {num_ranks} ranks"):
            place_by_count(num_refiners, num_ranks)
        return
    placement = Placement(place_by_count(num_refiners, num_ranks))
    assert [i for r in range(num_ranks) for i in placement.refiners(r)] == list(range(num_refiners))
    assert max(placement.counts) - min(placement.counts) <= 1


@given(st.data(), st.integers(1, 8), st.integers(1, 5))
def test_by_cost_has_the_least_maximum_load(data: st.DataObject, num_refiners: int, num_ranks: int) -> None:
    """Against every contiguous placement there is."""
    num_ranks = min(num_ranks, num_refiners)
    cost = st.one_of(st.integers(0, 5).map(float), st.floats(0, 10))
    costs = data.draw(st.lists(cost, min_size=num_refiners, max_size=num_refiners))
    first = data.draw(cost)
    counts = place_by_cost(costs, num_ranks, first)
    assert sum(counts) == num_refiners
    assert len(counts) == num_ranks
    least = min(max_load(other, costs, first) for other in every_placement(num_refiners, num_ranks))
    assert max_load(counts, costs, first) == pytest.approx(least)


def test_by_cost_spares_a_rank_that_is_busy_already() -> None:
    assert place_by_cost([1.0] * 10, 4) == (3, 3, 2, 2)
    assert place_by_cost([1.0] * 6, 2, first_load=4.0) == (1, 5)
    assert place_by_cost([1.0] * 8, 4, first_load=100.0) == (1, 3, 2, 2), "the others share the rest"


def test_by_cost_places_thousands() -> None:
    costs = [1.0 + (i % 7) / 10 for i in range(4096)]
    counts = place_by_cost(costs, 2048, first_load=2.0)
    assert max_load(counts, costs, 2.0) == pytest.approx(1.0 + 1.1 + 1.2), "4095 on 2047 ranks: some rank has three"


@given(st.integers(0, 100), st.integers(1, 20))
def test_even_split(total: int, parts: int) -> None:
    shares = even_split(total, parts)
    assert sum(shares) == total
    assert len(shares) == parts
    assert shares == sorted(shares, reverse=True)
    assert shares[0] - shares[-1] <= 1


def test_as_given() -> None:
    assert place_as_given([1, 3], 4, 2) == (1, 3)
    for counts in ([2, 3], [4], [0, 4], [1, 1, 2]):
        with pytest.raises(ValueError, match="4 refiners go on 2 ranks: give 2 numbers of at least 1 that add up to 4"):
            place_as_given(counts, 4, 2)


def test_messages() -> None:
    with pytest.raises(ValueError, match="every rank needs at least one refiner, but the placement is \\[1, 0\\]"):
        Placement((1, 0))
    with pytest.raises(ValueError, match="extractor placement 'nowhere' is unknown"):
        Placement((1,), "nowhere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="costs must be numbers >= 0"):
        place_by_cost([1.0, float("nan")], 1)


def test_root_holds_the_extractor_alone() -> None:
    assert [Placement((1, 1), "root").holds_extractor(r) for r in (0, 1)] == [True, False]
    assert all(Placement((1, 1), "sharded").holds_extractor(r) for r in (0, 1))
