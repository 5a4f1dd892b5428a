"""Memory that ranks are expected to need: by hand, and against what engines measured."""

import json
from typing import Any

import pytest
import torch

from sidpar.calibration.pieces import measure_costs
from sidpar.config.groups.compute import Compute
from sidpar.models.emulated import emulated
from sidpar.planner.candidates import Candidate, LocalCandidate, PipelineCandidate, WholeCandidate
from sidpar.planner.job import Job
from sidpar.schedules.cut import make_cut
from sidpar.schedules.placement import Copies, Placement
from sidpar.simulation.costs import Curve, Piece
from sidpar.simulation.rank_memory import footprint
from tests.harness import ROOT

INSTANT = Curve((1,), (0.0,))


def piece(trained: float, held: float) -> Piece:
    return Piece(INSTANT, INSTANT, trained_bytes=trained, held_bytes=held)


def test_by_hand() -> None:
    """Adam keeps two numbers for each parameter; two versions of a streaming extractor have a gradient each, and then
    it has none of its own; a frozen one has neither."""
    extractor, refiners = [piece(10.0, 12.0)], [piece(100.0, 100.0)] * 2
    common: dict[str, Any] = {"state_per_byte": 2.0, "saved_activations": 1000.0, "communication_buffers": 5000.0}
    fused = footprint(extractor, refiners, **common)
    assert (fused.parameters, fused.gradients, fused.optimizer_state, fused.versions) == (212, 210, 420, 0)
    assert fused.total == 212 + 210 + 420 + 1000 + 5000
    streaming = footprint(extractor, refiners, versions=2, **common)
    assert (streaming.gradients, streaming.optimizer_state, streaming.versions) == (200, 420, 2 * 2 * 10)
    frozen = footprint(extractor, refiners, trains_extractor=False, **common)
    assert (frozen.parameters, frozen.gradients, frozen.optimizer_state) == (212, 200, 400)


def candidate_of(row: dict[str, Any], job: Job) -> Candidate | None:
    """Of a measured method, if plans know it."""
    ranks, num_refiners, m = row["world_size"], len(job.costs.refiners), row["microbatches"]
    match row["method"], row["schedule"]:
        case "sid", "fused" | "two_phase" | "streaming":
            placement = Placement((num_refiners // ranks,) * ranks, row["extractor"])
            return LocalCandidate(row["schedule"], placement, m, int(row["schedule"] == "streaming"))
        case "bp", "naive":
            cut = make_cut("naive", "root", ranks, [0.0], [1.0] * num_refiners)
            return PipelineCandidate("naive", cut, m)
        case "ddp", _:
            return WholeCandidate("ddp", "ddp", Copies(num_refiners, ranks), m)
        case "bp", "one process" | "one process, accumulation" | "one process, checkpointing":
            checkpointing = "checkpointing" in row["schedule"]
            schedule: Any = "one device, checkpointing" if checkpointing else "one device"
            return WholeCandidate("bp", schedule, Copies(num_refiners, 1), m)
    return None


@pytest.mark.parametrize("name", ["emulated_k4", "emulated_k8"])
def test_what_engines_measured(name: str) -> None:
    """Byte for byte on every rank; saved activations within 15 %, because they are measured piece by piece."""
    report = json.loads((ROOT / "profiling" / "results" / name / "report.json").read_text())
    num_refiners, batch = report["workload"]["num_refiners"], report["workload"]["batch_size"]
    cascade = emulated(num_refiners, refiner_seconds=0.0, extractor_seconds=0.0)
    costs = measure_costs(cascade, torch.randn(batch, 32), Compute(), [64, batch], apart=True)
    job = Job(costs, batch, report["rows"][0]["world_size"], state_per_byte=1.0)
    compared = 0
    for row in report["rows"]:
        candidate = candidate_of(row, job)
        if candidate is None:
            continue
        found = candidate.footprints(job, candidate.peaks(job, range(row["world_size"])))
        for rank, measured in enumerate(row["memory"]):
            for kind in ("parameters", "gradients", "optimizer_state", "versions", "communication_buffers"):
                assert getattr(found[rank], kind) == measured.get(kind, 0), (row["key"], rank, kind)
            saved = pytest.approx(measured["saved_activations"], rel=0.15)
            assert found[rank].saved_activations == saved, (row["key"], rank)
        compared += 1
    assert compared >= 10
