"""The search finds what trying everything finds; what it chooses fits, and is worth its price."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidpar import UsageError
from sidpar.methods.base import job_of
from sidpar.planner import search as planning
from sidpar.planner.candidates import LocalCandidate
from sidpar.planner.job import Job
from sidpar.planner.report import plan_text, verdict
from sidpar.planner.search import (
    Freedom,
    backpropagation,
    choose,
    evaluate,
    local_candidates,
    make_plan,
    place,
    record_of,
    search,
)
from sidpar.simulation.costs import Costs, Link, Links
from sidpar.train import parse
from tests.simulation.test_cost_model import BATCH, costs


def weighty(given_costs: Costs) -> Costs:
    """Every piece with a kilobyte of parameters."""
    layers, refiners = (
        [replace(piece, trained_bytes=1000.0, held_bytes=1000.0) for piece in pieces]
        for pieces in (given_costs.layers, given_costs.refiners)
    )
    return replace(given_costs, layers=layers, refiners=refiners)


def job(ranks: int, num_refiners: int, extractor: float = 0.5, **more: Any) -> Job:
    links = Links(Link(0.01), Link(0.02), Link(0.02), Link(0.02), Link(0.02), Link(0.05, 1e-5))
    return Job(weighty(costs(num_refiners, extractor, links=links, overhead=0.001)), BATCH, ranks, **more)


@settings(max_examples=12)
@given(
    st.integers(1, 5),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.5, 4.0]),
    st.sampled_from([None, 200.0, 3000.0, 8000.0]),
)
def test_nothing_is_lost_by_not_trying_everything(ranks: int, more: int, extractor: float, memory: float) -> None:
    given_job = job(ranks, ranks + more, extractor, device_memory=memory)
    candidates = [*local_candidates(given_job, Freedom()), *backpropagation(given_job, None, {})]
    for found in search(given_job, candidates):
        row = [c for c in candidates if c.row == found.candidate.row]
        options = [evaluate(given_job, candidate, candidate.bound(given_job), simulate=True) for candidate in row]
        fitting = [option.seconds for option in options if option.fits(given_job)]
        assert found.fits(given_job) == bool(fitting)
        if fitting:
            assert found.seconds == pytest.approx(min(fitting))


def test_what_does_not_fit_is_never_chosen() -> None:
    """Less memory, more microbatches; then nothing."""
    free = make_plan(job(4, 8)).chosen
    assert free is not None
    assert free.largest is not None
    tight = make_plan(job(4, 8, device_memory=0.97 * free.largest.total))
    assert tight.chosen is not None
    assert tight.chosen.seconds > free.seconds
    assert tight.chosen.fits(job(4, 8, device_memory=0.97 * free.largest.total))
    none = make_plan(job(4, 8, device_memory=100.0))
    assert none.chosen is none.best_other is None
    assert not [option for option in none.options if option.fits(job(4, 8, device_memory=100.0))]
    assert verdict(none).startswith("Nothing is known to fit")


def test_streaming_must_be_worth_its_staleness() -> None:
    """On one rank nothing is hidden by it; on eight, most of the chain."""
    alone, eight = make_plan(job(1, 8)).chosen, make_plan(job(8, 8)).chosen
    assert alone is not None
    assert eight is not None
    assert (alone.candidate.schedule, eight.candidate.schedule) == ("fused", "streaming")
    options = search(job(8, 8), local_candidates(job(8, 8), Freedom(schedules=["fused", "streaming"])))
    streams, others = ([o.seconds for o in options if bool(o.candidate.staleness) == s] for s in (True, False))
    assert min(others) > planning.WORTH * min(streams)


def test_it_says_when_backpropagation_is_faster() -> None:
    """Few parameters to sum, and messages between refiners that take long: DDP."""
    slow = replace(job(8, 8).costs, links=Links(message=Link(1.0)))
    plan = make_plan(replace(job(8, 8), costs=slow))
    assert plan.best_other is not None
    assert plan.best_other.candidate.method == "ddp"
    assert re.match(r"SID is not the fastest: SID .* with M = \d+, .* a step; DDP, .* s; it takes ", verdict(plan))
    fast = make_plan(replace(job(8, 8), costs=replace(slow, links=Links(all_reduce=Link(0.0, 1e-3)))))
    assert verdict(fast).startswith("SID is predicted to be the fastest: SID ")


def test_the_verdict_is_about_what_fits_and_is_known() -> None:
    """What needs too much memory is not compared with; a bound is not called a prediction."""
    free = make_plan(job(8, 8))
    assert free.chosen is not None
    assert free.best_other is not None
    assert free.chosen.largest is not None
    tight = make_plan(job(8, 8, device_memory=1.01 * free.chosen.largest.total))
    others = [option for option in tight.options if option.candidate.method != "sid"]
    assert [o for o in others if not o.fits(job(8, 8, device_memory=1.01 * free.chosen.largest.total))]
    assert tight.best_other is None or tight.best_other.seconds > free.best_other.seconds
    bound = replace(free.chosen, bubble=None, seconds=free.best_other.seconds / 2)
    assert verdict(replace(free, chosen=bound)).startswith("SID may be the fastest: SID ")
    slow = replace(free.chosen, seconds=2 * free.best_other.seconds)
    assert "it takes 2.00 times as long" in verdict(replace(free, chosen=slow))
    assert verdict(replace(free, best_other=None)).startswith("No way of backpropagation is known to fit; SID ")


def test_more_ranks_than_refiners() -> None:
    """Not for SID; for others, yes, each with a row at least."""
    plan = make_plan(job(6, 4))
    assert plan.chosen is None
    assert "4 refiners cannot be placed on 6 ranks" in plan.left_out["sid"]
    assert verdict(plan).startswith("No way of SID is known to fit; ")
    rows = {option.candidate.row: option for option in plan.options}
    assert rows["ddp ddp whole"].candidate.microbatches <= BATCH // 6
    wide = make_plan(job(2 * BATCH, 4))
    assert {o.candidate.microbatches for o in wide.options if o.candidate.method == "ddp"} == {1}


def test_the_heaviest_rank_decides_what_fits() -> None:
    """Also where memory is looked up for a few ranks only."""
    given_job = job(64, 64, device_memory=1e6)
    refiners = [replace(p, held_bytes=1e9 if i == 5 else 1.0) for i, p in enumerate(given_job.costs.refiners)]
    given_job = replace(given_job, costs=replace(given_job.costs, refiners=refiners))
    (candidate, *_) = local_candidates(given_job, Freedom(["fused"], ["sharded"], microbatches=2))
    option = evaluate(given_job, candidate, 1.0, simulate=False)
    assert set(option.footprints) == {0, 5, 32, 63}
    assert not option.fits(given_job)


def test_many_ranks_are_planned_by_bounds() -> None:
    """A thousand: what would take long is not simulated, the plan says so, and finds what the law says."""
    given_job = Job(weighty(costs(1024)), BATCH, 1024)
    plan = make_plan(given_job)
    assert plan.chosen is not None
    assert isinstance(plan.chosen.candidate, LocalCandidate)
    rows = {option.candidate.row: option for option in plan.options}
    replicated = rows["sid streaming replicated"]
    assert replicated.candidate.microbatches == 32, "of two rows each"
    assert replicated.bubble is None
    assert replicated.seconds == pytest.approx((3 + 1023 / 32) / 2)
    assert set(replicated.footprints) == {0, 512, 1023}
    text = plan_text([], given_job, replicated, plan)
    assert " >= " in text
    assert "  a bound" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "refiners per rank   1 on 1024 ranks" in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "MAX_ACTIONS", math.inf)
        small = [c for c in local_candidates(given_job, Freedom(["fused"], ["sharded"])) if c.microbatches <= 4]
        (simulated,) = search(given_job, small)
    assert simulated.seconds == pytest.approx(simulated.candidate.bound(given_job))


def test_a_rule_whose_loss_is_no_sum_is_planned_without_microbatches() -> None:
    given_job = replace(job(2, 4), rule="spread", splits_batches=False)
    assert {candidate.microbatches for candidate in local_candidates(given_job, Freedom())} == {1}
    chosen = make_plan(given_job).chosen
    assert chosen is not None
    assert (record_of(chosen)["method"], record_of(chosen)["rule"]) == ("sid", "spread")


def test_freedom() -> None:
    """What is given stays."""
    freedom = Freedom(["fused"], ["root"], microbatches=3, placement=[1, 3])
    (candidate,) = local_candidates(job(2, 4), freedom)
    assert isinstance(candidate, LocalCandidate)
    assert (candidate.schedule, candidate.placement.extractor) == ("fused", "root")
    assert (candidate.microbatches, candidate.placement.counts) == (3, (1, 3))
    with pytest.raises(UsageError, match=r"placement \[1, 3\] has 2 ranks and 4 refiners, but 5 refiners"):
        list(local_candidates(job(2, 5), freedom))
    assert choose(job(2, 4), []) is None


def test_placing() -> None:
    """By cost only where by count is more than a little uneven."""
    assert place(([1.0], [1.0, 1.02, 0.98, 1.0]), "sharded", 2, None) == (2, 2)
    assert place(([1.0], [3.0, 1.0, 1.0, 1.0]), "sharded", 2, None) == (1, 3)
    assert place(([2.0], [1.0] * 4), "root", 2, None) == (1, 3)
    assert place(([2.0], [1.0] * 4), "root", 2, "count") == (2, 2)
    assert place(([1.0], [1.0, 1.02, 0.98, 1.03]), "sharded", 2, [3, 1]) == (3, 1)
    assert place(([1.0], [1.2, 1.0, 1.0, 1.0, 1.0]), "sharded", 2, "cost") == (2, 3)


@pytest.mark.parametrize(
    ("flags", "state", "trains"),
    [
        ([], 2.0, True),
        (["--optim.name", "sgd"], 1.0, True),
        (["--optim.name", "sgd", "--optim.momentum", "0"], 0.0, True),
        (["--optim.name", "adamw", "--objective.extractor_update", "frozen"], 2.0, False),
    ],
)
def test_a_job_is_what_the_configuration_says(flags: list[str], state: float, trains: bool) -> None:
    found = job_of(parse([*flags, "--parallel.replicas", "2"]), job(4, 8).costs, 8, 1e9)
    assert (found.state_per_byte, found.trains_extractor) == (state, trains)
    assert (found.num_ranks, found.cascade_size, found.batch_size, found.device_memory) == (8, 4, 128, 1e9)
    assert not job_of(parse(flags), costs(8), 8, None).trains_extractor, "it has no parameters"


def test_replicas_share_the_batch() -> None:
    """Two replicas of two ranks: half the work of a cascade on two, and sums over replicas."""
    whole = make_plan(job(2, 4)).chosen
    halves = make_plan(job(4, 4, num_replicas=2)).chosen
    assert whole is not None
    assert halves is not None
    assert 0.45 * whole.seconds < halves.seconds < 0.65 * whole.seconds
    assert {m.kind for m in halves.candidate.messages(job(4, 4, num_replicas=2))} >= {"refiners' gradients", "state"}
