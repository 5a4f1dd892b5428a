"""Cuts of a cascade: every piece once, loads balanced, impossible ones refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidpar import UsageError
from sidpar.schedules.cut import PIPELINES, check_microbatches, make_cut


@given(st.sampled_from(list(PIPELINES)), st.sampled_from(["root", "cut"]), st.integers(2, 5), st.integers(1, 6))
def test_every_piece_lies_on_one_rank(schedule: str, extractor: str, num_ranks: int, num_layers: int) -> None:
    num_refiners = 2 * num_ranks + 1
    placed = make_cut(schedule, extractor, num_ranks, [1.0] * num_layers, [2.0] * num_refiners)  # type: ignore[arg-type]
    layers = num_layers if extractor == "cut" else 1
    assert sorted(i for r in range(num_ranks) for i in placed.refiners(r)) == list(range(num_refiners))
    assert sorted(k for r in range(num_ranks) for k in placed.extractor_layers(r, layers)) == list(range(layers))
    pieces = [(k, None) for s in range(placed.num_sections) for k in placed.layers_of(s)]
    pieces += [(None, i) for s in range(placed.num_sections) for i in placed.refiners_of(s)]  # type: ignore[misc]
    assert pieces == [(k, None) for k in range(layers)] + [(None, i) for i in range(num_refiners)]
    assert placed.num_refiners == num_refiners
    assert {len(placed.sections(r)) for r in range(num_ranks)} == {PIPELINES[schedule].sections_per_rank}  # type: ignore[index]


def test_v_comes_back_to_the_first_rank() -> None:
    placed = make_cut("zbv", "root", 3, [1.0], [1.0] * 6)
    assert [placed.rank_of(s) for s in range(6)] == [0, 1, 2, 2, 1, 0]
    assert [make_cut("interleaved", "root", 3, [1.0], [1.0] * 6).rank_of(s) for s in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_heavy_extractor_is_spread() -> None:
    """Six layers of cost 1 and two refiners of cost 1 on four ranks: two pieces each; uncut, rank 0 has six."""
    assert make_cut("1f1b", "cut", 4, [1.0] * 6, [1.0] * 2).counts == (2, 2, 2, 2)
    assert make_cut("1f1b", "root", 2, [1.0] * 6, [1.0] * 4).counts == (2, 3)
    assert make_cut("1f1b", "cut", 2, [1.0] * 3, [9.0] * 3, by_cost=False).counts == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zbv", "root", 4, [1.0], [1.0] * 7), "8 sections, 2 on each of 4 ranks, but there are only 7 refiners"),
        (("1f1b", "cut", 4, [1.0], [1.0] * 2), "only 3 layers and refiners"),
    ],
)
def test_too_few_pieces(arguments: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        make_cut(*arguments)


def test_counts_as_given() -> None:
    assert make_cut("1f1b", "root", 2, [1.0], [1.0] * 4, counts=[1, 3]).counts == (2, 3)
    with pytest.raises(UsageError, match=r"placement \[2, 3\] has 2 sections and 5 refiners"):
        make_cut("1f1b", "root", 2, [1.0], [1.0] * 4, counts=[2, 3])


@pytest.mark.parametrize(
    ("schedule", "microbatches", "message"),
    [
        ("naive", 2, "naive has one microbatch"),
        ("1f1b", 3, "needs at least 4 microbatches"),
        ("dualpipe_v", 7, "needs at least 8 microbatches"),
        ("interleaved", 9, "must be a multiple of 2; use 8"),
        ("zero_bubble", 11, "must be a multiple of 2; use 8"),
    ],
)
def test_microbatches_that_a_schedule_is_not_defined_for(schedule: str, microbatches: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_microbatches(schedule, microbatches, 4)  # type: ignore[arg-type]
