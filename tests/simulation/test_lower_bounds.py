"""No step is faster than its bound; where ranks are alike, none is slower."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import make_cut
from sidpar.schedules.pipelines import gpipe, one_f_one_b, with_messages
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import rank_views
from sidpar.schedules.streaming import stream
from sidpar.schedules.synchronous import SCHEDULES
from sidpar.simulation.cost_model import predict_local, predict_pipeline
from sidpar.simulation.costs import Costs, Curve, Link, Links, Piece
from sidpar.simulation.lower_bounds import Times, local_bound, pipeline_bound
from tests.simulation.test_cost_model import BATCH, costs

SECONDS = st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.0])
LINKS = st.builds(Links, *[st.builds(Link, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 0.001]))] * 6)


@st.composite
def some_costs(draw: st.DrawFn, num_refiners: int) -> Costs:
    def piece() -> Piece:
        forward, backward = (Curve((1, 8), (seconds / 8, seconds)) for seconds in (draw(SECONDS), draw(SECONDS)))
        return Piece(forward, backward, trained_bytes=draw(SECONDS))

    refiners = [piece() for _ in range(num_refiners)]
    return Costs([piece()], refiners, draw(LINKS), 3.0, [4.0] * (num_refiners + 1), [3.0], overhead=draw(SECONDS) / 20)


@settings(max_examples=400)
@given(st.data())
def test_no_step_of_sid_is_faster_than_its_bound(data: st.DataObject) -> None:
    counts = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=7)))
    given_costs = data.draw(some_costs(sum(counts)))
    placement = Placement(counts, data.draw(st.sampled_from(["replicated", "root", "sharded"])))
    layout = BatchLayout(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9)), len(counts))
    views = rank_views(
        placement,
        len(layout.microbatches),
        trains_extractor=data.draw(st.booleans()),
        replicas=data.draw(st.integers(1, 2)),
        refiner_execution=data.draw(st.sampled_from(["loop", "stacked"])),
        passes_states=data.draw(st.booleans()),
        reads=data.draw(st.sampled_from([None, (frozenset({0}),), (frozenset({0}), frozenset({sum(counts) - 1}))])),
    )
    schedule: Any = data.draw(st.sampled_from([*SCHEDULES, "streaming"]))
    if schedule == "streaming":
        staleness = data.draw(st.integers(1, 2))
        lengths = [steps(views, placement, given_costs, layout, staleness, count) for count in (14, 14 + staleness + 1)]
        bound = local_bound(schedule, views, Times(given_costs), layout, staleness)
        assert bound <= (lengths[1] - lengths[0]) / (staleness + 1) * (1 + 1e-9) + 1e-9
        return
    lists = [SCHEDULES[schedule](view) for view in views]
    seconds = predict_local(lists, placement, given_costs, layout).seconds
    assert local_bound(schedule, views, Times(given_costs), layout) <= seconds * (1 + 1e-9)


def steps(views: Any, placement: Placement, given_costs: Costs, layout: BatchLayout, staleness: int, n: int) -> float:
    """The length of a stream."""
    return predict_local([stream(view, staleness, n) for view in views], placement, given_costs, layout).seconds


@settings(max_examples=200)
@given(st.data())
def test_no_pipeline_is_faster_than_its_bound(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=7))
    ranks, m = len(counts), data.draw(st.integers(1, 9))
    given_costs = data.draw(some_costs(sum(counts)))
    cut = make_cut("gpipe", "root", ranks, [1.0], [1.0] * sum(counts), counts=counts)
    for schedule, generate in (("gpipe", gpipe), ("1f1b", one_f_one_b)):
        lists = [with_messages(cut, generate(cut, rank, m)) for rank in range(ranks)]
        seconds = predict_pipeline(lists, given_costs, cut, 5).seconds
        assert pipeline_bound(schedule, cut, given_costs, 5, m) <= seconds * (1 + 1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize(("ranks", "microbatches"), list(product((1, 4, 16), (1, 4, 16))))
def test_alike_ranks_reach_it(ranks: int, microbatches: int) -> None:
    """Then it is the law."""
    given_costs, layout = costs(ranks), BatchLayout(BATCH, microbatches, ranks)
    for extractor, (name, schedule) in product(("replicated", "root", "sharded"), SCHEDULES.items()):
        placement = Placement((1,) * ranks, extractor)  # type: ignore[arg-type]
        views = rank_views(placement, microbatches)
        seconds = predict_local([schedule(view) for view in views], placement, given_costs, layout).seconds
        assert local_bound(name, views, Times(given_costs), layout) == pytest.approx(seconds)
    cut = make_cut("gpipe", "root", ranks, [0.0], [1.0] * ranks)
    lists = [with_messages(cut, gpipe(cut, rank, microbatches)) for rank in range(ranks)]
    rows = BATCH // microbatches
    seconds = predict_pipeline(lists, given_costs, cut, rows).seconds
    assert pipeline_bound("gpipe", cut, given_costs, rows, microbatches) == pytest.approx(seconds)
