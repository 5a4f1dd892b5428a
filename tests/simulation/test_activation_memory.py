"""What lists of actions hold in memory: by hand, and as engines measured it."""

import json
from typing import Any

import pytest

from sidpar.schedules.actions import Action, Do
from sidpar.schedules.batching import BatchLayout
from sidpar.schedules.cut import make_cut
from sidpar.schedules.pipelines import gpipe, one_f_one_b, with_messages
from sidpar.schedules.placement import Placement
from sidpar.schedules.rank_view import rank_views
from sidpar.schedules.synchronous import SCHEDULES
from sidpar.simulation.activation_memory import Occupancy
from sidpar.simulation.cost_model import Prediction, predict_local, predict_pipeline
from sidpar.simulation.costs import Costs, Curve, Piece
from tests.harness import ROOT


def peaks(*actions: Action) -> tuple[float, float]:
    """Saved activations and buffers, where an action of microbatch m brings 10^m bytes."""
    occupancy = Occupancy(lambda action: 10.0 ** (action.microbatch or 0))
    assert list(occupancy.watch(actions)) == list(actions), "they pass unchanged"
    return occupancy.peaks["saved activations"], occupancy.peaks["communication buffers"]


def test_what_is_freed_makes_room() -> None:
    forward, backward = ([Action(do, m, 3) for m in (0, 1)] for do in (Do.FORWARD, Do.BACKWARD))
    assert peaks(*forward, *backward) == (11, 0)
    assert peaks(forward[0], backward[0], forward[1], backward[1]) == (10, 0)
    assert peaks(forward[0], Action(Do.BACKWARD, 0, 3, step=1), forward[1]) == (11, 0), "of another batch"


def test_a_verb_without_a_microbatch_frees_all_of_its_batch() -> None:
    sends = [Action(Do.SEND_STATE, m, peer=1) for m in (0, 1, 2)]
    assert peaks(*sends[:2], Action(Do.AWAIT_STATES_SENT), sends[2]) == (0, 100)
    assert peaks(*sends[:2], Action(Do.AWAIT_STATES_SENT, step=1), sends[2]) == (0, 111)


def test_sections_receive_and_save() -> None:
    """An activation that arrives is a buffer until the forward that takes it."""
    receive, forward = Action(Do.AWAIT_ACTIVATION, 1, section=2), Action(Do.SECTION_FORWARD, 1, section=2)
    gradient = Action(Do.AWAIT_ACTIVATION_GRADIENT, 0, section=2)
    assert peaks(receive, forward, gradient) == (10, 10)


def predicted(row: dict[str, Any], costs: Costs, batch: int) -> Prediction | None:
    """What the lists of a measured method let expect."""
    ranks, num_refiners, microbatches = row["world_size"], len(costs.refiners), row["microbatches"]
    if row["schedule"] in SCHEDULES:
        placement = Placement((num_refiners // ranks,) * ranks, row["extractor"])
        lists = [SCHEDULES[row["schedule"]](view) for view in rank_views(placement, microbatches)]  # type: ignore[index]
        return predict_local(lists, placement, costs, BatchLayout(batch, microbatches, ranks))
    generate = {"naive": gpipe, "gpipe": gpipe, "1f1b": one_f_one_b}.get(row["schedule"])
    if generate is None:
        return None
    cut = make_cut("gpipe", "root", ranks, [0.0], [1.0] * num_refiners)
    work = [generate(cut, rank, microbatches) for rank in range(ranks)]
    return predict_pipeline([with_messages(cut, mine) for mine in work], costs, cut, batch / microbatches)


@pytest.mark.parametrize("name", ["emulated_k4", "emulated_k8"])
def test_buffers_are_those_that_engines_measured(name: str) -> None:
    """Byte for byte, on every rank: features [B, 32] and beliefs [B, 10] in fp32."""
    report = json.loads((ROOT / "profiling" / "results" / name / "report.json").read_text())
    workload, piece = report["workload"], Piece(Curve((1,), (1.0,)), Curve((1,), (1.0,)))
    refiners = [piece] * workload["num_refiners"]
    costs = Costs([piece], refiners, feature_bytes=4 * 32, state_bytes=[4 * 10] * (len(refiners) + 1))
    compared = 0
    for row in report["rows"]:
        prediction = predicted(row, costs, workload["batch_size"])
        if prediction is not None:
            assert prediction.buffer_bytes == [rank["communication_buffers"] for rank in row["memory"]], row["key"]
            compared += 1
    assert compared > 10
