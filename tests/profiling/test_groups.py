"""Contenders share memory group by group: a pure rule, tried on random needs."""

from collections import Counter

from harness.groups import Groups, Need, groups_that_fit, memory_together
from hypothesis import given
from hypothesis import strategies as st

NEED = st.builds(lambda held, working: Need(held, held + working), st.integers(0, 40), st.integers(0, 60))
NEEDS = st.lists(NEED, max_size=12).map(lambda needs: {f"contender {k}": need for k, need in enumerate(needs)})


@given(NEEDS, st.integers(1, 120))
def test_every_contender_is_timed_once_beside_the_reference_or_left_out(needs: dict[str, Need], limit: int) -> None:
    found = groups_that_fit(needs, limit)
    seen = Counter(key for group in found.groups for key in group)
    references = {group[0] for group in found.groups}
    assert len(references) <= 1
    assert all(count == 1 for key, count in seen.items() if key not in references)
    assert all(seen[reference] == len(found.groups) for reference in references)
    assert seen.keys() | found.left_out.keys() == needs.keys()
    assert not seen.keys() & found.left_out.keys()


@given(NEEDS, st.integers(1, 120))
def test_groups_fit_and_who_is_left_out_would_not(needs: dict[str, Need], limit: int) -> None:
    found = groups_that_fit(needs, limit)
    for group in found.groups:
        assert memory_together(needs[key] for key in group) <= limit
    for key in found.left_out:
        beside = [needs[group[0]] for group in found.groups[:1]]
        assert memory_together([*beside, needs[key]]) > limit


@given(NEEDS, st.integers(1, 120))
def test_groups_are_no_more_than_needed_for_the_last_one(needs: dict[str, Need], limit: int) -> None:
    """Who begins a group, besides the reference, has no room in any before it."""
    groups = groups_that_fit(needs, limit).groups
    for later, group in enumerate(groups[1:], 1):
        for earlier in groups[:later]:
            assert memory_together(needs[key] for key in [*earlier, group[1]]) > limit


def test_what_is_held_adds_up_and_only_one_works() -> None:
    needs = {"naive": Need(10, 30), "ddp": Need(40, 50), "sid": Need(10, 40), "zbv": Need(20, 30)}
    found = groups_that_fit(needs, 80)
    assert found == Groups([["naive", "ddp"], ["naive", "sid", "zbv"]])
    assert groups_that_fit(needs, 110).groups == [["naive", "ddp", "sid", "zbv"]]
    assert groups_that_fit(needs, None).groups == [["naive", "ddp", "sid", "zbv"]]
    assert groups_that_fit({}, None) == groups_that_fit({}, 1) == Groups()


def test_one_that_is_too_large_is_left_out_and_the_reason_has_the_sizes() -> None:
    gib = 2.0**30
    needs = {"naive": Need(gib, 5 * gib), "1f1b": Need(gib, 2 * gib), "ddp": Need(3 * gib, 4 * gib)}
    found = groups_that_fit(needs, 4 * gib)
    assert found.groups == [["1f1b"]]
    assert found.left_out == {
        "naive": "needs more than 4.00 GiB: 5.00 GiB",
        "ddp": "needs more than 4.00 GiB: 5.00 GiB with 1f1b beside it, the reference of every group",
    }
