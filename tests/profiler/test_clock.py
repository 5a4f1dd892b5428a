"""The clock of a step, and the offset between the clocks of ranks."""

import time
from itertools import count, pairwise

import pytest
import torch

from sidpar import Objective, ParallelEngine, Runtime, Stage
from sidpar.profiler.clock import Clock, span
from sidpar.profiler.clock_offset import clock_offset
from sidpar.schedules.actions import Do
from sidpar.schedules.phases import COMPUTE, PHASE
from tests import networks
from tests.harness import run_ranks


def test_spans_lie_where_they_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that advances by one second whenever it is read."""
    seconds = count(10.0)
    monkeypatch.setattr("sidpar.distributed.device.time.perf_counter", lambda: next(seconds))
    clock = Clock(torch.device("cpu"))
    clock.start()
    with clock.span("refiner forward", "a"):
        pass
    clock.waited("receive wait", "b")
    with span(clock, "send", 3):
        pass
    length, spans = clock.read()
    assert spans == [
        ("refiner forward", "a", 1.0, 2.0),
        ("receive wait", "b", 2.0, 3.0),
        ("send", "3", 4.0, 5.0),
    ]
    assert length == 6.0
    clock.start()
    assert clock.read()[1] == [], "a new window is empty"


def test_without_a_clock_nothing_is_recorded() -> None:
    with span(None, "send"):
        pass


def test_a_span_that_fails_is_recorded_and_the_error_passes() -> None:
    clock = Clock(torch.device("cpu"))
    clock.start()
    with pytest.raises(ZeroDivisionError), clock.span("send"):
        raise ZeroDivisionError
    assert len(clock.read()[1]) == 1


def test_every_verb_has_a_phase() -> None:
    assert set(PHASE) == set(Do)


def phases(runtime: Runtime) -> set[str]:
    stage = Stage(networks.plain(4), runtime, extractor="sharded")
    engine = ParallelEngine(stage, Objective(), microbatches=2)
    engine.clock = Clock(runtime.device)
    engine.clock.start()
    engine.step(*networks.batch(8))
    length, spans = engine.clock.read()
    for before, after in pairwise(spans):
        assert before.end <= after.start, "a rank does one thing after the other"
    assert sum(s.end - s.start for s in spans if s.phase in COMPUTE) < length
    return {s.phase for s in spans}


@pytest.mark.processes
def test_a_step_of_sid_has_all_its_phases() -> None:
    for found in run_ranks(phases, 2):
        assert found == {
            "extractor forward",
            "send",
            "receive wait",
            "refiner forward",
            "refiner backward",
            "feature reduction",
            "extractor backward",
            "parameter reduction",
        }


def offsets(runtime: Runtime) -> float:
    return clock_offset(runtime)


@pytest.mark.processes
def test_ranks_of_one_host_share_a_clock() -> None:
    """Processes of one host read the same monotonic clock, so the true offset is 0."""
    assert run_ranks(offsets, 3) == [0, 0, 0]


def offset_between_hosts(runtime: Runtime) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.profiler.clock_offset.platform.node", lambda: f"host {runtime.rank}")
        if runtime.rank == 1:
            ahead = time.perf_counter
            patch.setattr("sidpar.profiler.clock_offset.time.perf_counter", lambda: ahead() + 100)
        return clock_offset(runtime)


@pytest.mark.processes
def test_clocks_of_other_hosts_are_compared() -> None:
    """Rank 1's clock is 100 s ahead of the others'. Its error is at most half of the fastest round trip."""
    first, ahead, other = run_ranks(offset_between_hosts, 3)
    assert first == 0
    assert ahead == pytest.approx(-100, abs=0.1)
    assert other == pytest.approx(0, abs=0.1)
