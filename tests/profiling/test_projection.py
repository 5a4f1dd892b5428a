"""Pieces timed on one device, and what is projected from them, from the command to its files."""

import importlib
import json
import sys
from itertools import product
from typing import Any

import pytest

from sidpar.schedules.cut import PIPELINES
from tests.harness import ROOT

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    out = tmp_path_factory.mktemp("projection")
    flags = ["--networks", "wide_mlp", "simple_cnn", "--width", "16", "--refiners", "4", "--batches", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "profiling"))
        patch.setattr(sys, "argv", ["projection.py", *flags, "--ranks", "2", "8", "--out", str(out)])
        importlib.import_module("projection").main()
    return json.loads((out / "projection.json").read_text()), (out / "projection.md").read_text()


def test_pieces_are_measured(report: tuple[dict[str, Any], str]) -> None:
    for row in report[0]["rows"]:
        costs = row["costs_ms"]
        assert len(costs["refiner forward"]) == len(costs["refiner backward"]) == 4
        assert min(costs["extractor forward"], *costs["refiner backward"]) > 0
        plain, checkpointed = (row["memory"][f"bp one process{more} whole M=1"] for more in ("", ", checkpointing"))
        assert plain["saved_activations"] > checkpointed["saved_activations"] > 0


def test_projections_stand_beside_the_papers(report: tuple[dict[str, Any], str]) -> None:
    for row in report[0]["rows"]:
        assert {p["ranks"] for p in row["projections"]} == {2}, "4 refiners do not go on 8 ranks"
        methods = {p["method"]: p for p in row["projections"]}
        sid = product(("two_phase", "fused", "streaming"), ("replicated", "root", "sharded"))
        assert set(methods) == {
            "ddp ddp whole",
            *(f"bp {name} cut" for name in PIPELINES),
            *(f"sid {schedule} {extractor}" for schedule, extractor in sid),
        }
        assert methods["sid fused sharded"]["step_ms"] <= methods["sid two_phase sharded"]["step_ms"]
        assert methods["sid fused sharded"]["paper_speedup"] > 0
        assert methods["ddp ddp whole"]["paper_speedup"] is None


def test_tables(report: tuple[dict[str, Any], str]) -> None:
    assert "**CPU; not measured on a GPU.**" in report[1]
    assert report[1].count("| wide_mlp | 4 | 16 |") == 1 + 6 + len(report[0]["rows"][0]["projections"])
