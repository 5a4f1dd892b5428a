"""Figures of a report that are made from others."""

import pytest
from harness.contenders import Contender, Local, Pipeline
from harness.measuring import Measured, Window
from harness.rows import describe_costs, groups_of

from sidpar.simulation.costs import Costs, Curve, Piece

NAIVE = Pipeline("bp", "naive", "root")
FUSED, TWO_PHASE = (Local("sid", schedule, "root") for schedule in ("fused", "two_phase"))


def steps(*seconds: float) -> list[Measured]:
    """Of one rank."""
    return [Measured(timed=[Window(0.0, each, []) for each in seconds])]


def test_the_drift_of_a_group_is_the_references() -> None:
    everyone: dict[Contender, list[Measured]] = {
        NAIVE: steps(1.0, 1.1, 1.2, 2.0, 2.2, 2.4),
        FUSED: steps(0.5, 0.5, 0.5),
        TWO_PHASE: steps(0.7, 0.7, 0.7),
    }
    found = groups_of(everyone, [[NAIVE.key, FUSED.key], [NAIVE.key, TWO_PHASE.key]])
    assert found[NAIVE.key] == {"group": None, "drift": None}
    assert found[FUSED.key] == {"group": 1, "drift": pytest.approx(1.1 / 1.6)}
    assert found[TWO_PHASE.key] == {"group": 2, "drift": pytest.approx(2.2 / 1.6)}
    together = groups_of(everyone, [[NAIVE.key, FUSED.key, TWO_PHASE.key]])
    assert list(together.values()) == [{"group": 1, "drift": 1.0}] * 3
    assert groups_of({}, []) == {}


def test_costs_on_a_gpu_tell_both_figures() -> None:
    one, two, three = (Curve((8,), (seconds,)) for seconds in (0.001, 0.002, 0.003))
    plain = Costs([Piece(one, two)], [Piece(one, two)] * 2, state_bytes=[0.0] * 3, layer_bytes=[0.0])
    assert set(describe_costs(plain, 8)) == {
        *("extractor forward", "extractor backward", "refiner forward", "refiner backward")
    }
    refiner = Piece(one, two, device=two, launch=three)
    found = describe_costs(Costs([Piece(one, two)], [refiner] * 2), 8)
    assert (found["refiners, the GPU alone"], found["refiners, launched by the host"]) == pytest.approx((4.0, 6.0))
