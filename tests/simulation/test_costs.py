"""Costs on their way between ranks and files."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sidpar import UsageError
from sidpar.simulation.costs import Costs, Curve, Link, Links, Piece, from_plain, median_costs, to_plain

COSTS = Costs(
    layers=[Piece(Curve((2, 8), (0.1, 0.3)), Curve((2, 8), (0.2, 0.6)), 16.0, 64.0, 80.0)],
    refiners=[Piece(Curve((4,), (0.5,)), Curve((4,), (1.0,)), 8.0, 32.0, 32.0)] * 2,
    links=Links(message=Link(1e-5, 1e-9)),
    feature_bytes=12.0,
    state_bytes=[4.0, 4.0, 4.0],
    layer_bytes=[12.0],
    overhead=1e-4,
)


def test_by_way_of_json_nothing_is_lost() -> None:
    assert from_plain(json.loads(json.dumps(to_plain(COSTS)))) == COSTS


def on_a_gpu(seconds: float) -> Costs:
    """With what the device does, and what the host takes to launch it."""
    return replace(COSTS, refiners=[replace(p, device=at_four(0.3), launch=at_four(seconds)) for p in COSTS.refiners])


def at_four(seconds: float) -> Curve:
    return Curve((4,), (seconds,))


def test_of_a_gpu_and_its_host_nothing_is_lost_either() -> None:
    """Costs that were written before they were measured have neither."""
    measured = on_a_gpu(0.7)
    assert from_plain(json.loads(json.dumps(to_plain(measured)))) == measured
    plain = to_plain(measured)
    for piece in plain["refiners"]:
        del piece["device"], piece["launch"]
    assert from_plain(plain) == COSTS
    assert median_costs([on_a_gpu(seconds) for seconds in (0.9, 0.1, 0.4)]) == on_a_gpu(0.4)


def test_the_median_over_ranks() -> None:
    measured = [
        replace(COSTS, refiners=[replace(p, forward=Curve((4,), (seconds,))) for p in COSTS.refiners])
        for seconds in (0.9, 0.1, 0.4)
    ]
    found = median_costs(measured)
    assert [piece.forward(4) for piece in found.refiners] == [0.4, 0.4]
    assert found.layers == COSTS.layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "these are not the costs that a plan writes"),
        ({"surprise": 1}, "these are not the costs that a plan writes"),
        ({"links": {"message": {}, "pigeon": {}}}, "these are not the costs that a plan writes"),
        ({"state_bytes": []}, "costs need state_bytes for each refiner and one more"),
        ({"refiners": [{"forward": {"rows": [], "seconds": []}}]}, "costs need rows > 0"),
        ({"refiners": [{"forward": {"rows": [1], "seconds": [-1.0]}}]}, "seconds >= 0"),
    ],
)
def test_messages(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_plain(to_plain(COSTS) | change)
