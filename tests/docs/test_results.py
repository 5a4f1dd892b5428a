"""What pages say in words about the committed results holds for them: bounds, and who is ahead of whom."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from reporting.figures import Row
from reporting.summaries import RESULTS, over_best_sid, rows_of

from sidpar.schedules.phases import COMPUTE
from tests.harness import ROOT

REAL = ("wide_mlp_k2", "simple_cnn_k2", "digits_k2")


def read(*path: str) -> Any:
    return json.loads(RESULTS.joinpath(*path).read_text())


def modelled_off(name: str, counts: list[int]) -> float:
    """The largest distance of the cost model from the measured median, over rows with one of these M."""
    rows = [row for row in rows_of(name).values() if row["microbatches"] in counts and row["model_step_ms"] is not None]
    return max(abs(row["model_step_ms"] / row["step_ms"]["median"] - 1) for row in rows)


def test_how_far_the_model_is_off() -> None:
    assert modelled_off("emulated_k4", [1, 4, 16]) <= 0.06
    assert modelled_off("emulated_k8", [1, 8]) <= 0.05
    assert modelled_off("emulated_k8", [32]) <= 0.11


@pytest.mark.parametrize("name", ["emulated_k4", "emulated_k8"])
def test_streaming_is_ahead_of_every_pipeline(name: str) -> None:
    """At the best M of each."""
    best = best_speed_ups(rows_of(name))
    pipelines = ("naive", "gpipe", "1f1b", "interleaved", "zero_bubble", "zbv", "dualpipe_v")
    assert best["streaming"] > max(best[schedule] for schedule in pipelines)
    assert best["fused"] > max(best[schedule] for schedule in ("naive", "gpipe", "1f1b", "interleaved"))
    assert best["ddp"] > best["streaming"], "DDP wins where refiners are light to copy"


def best_speed_ups(rows: dict[str, Row]) -> dict[str, float]:
    """Over naive backpropagation, by schedule."""
    best: dict[str, float] = {}
    for row in rows.values():
        best[row["schedule"]] = max(row["speedup_vs_naive_bp"] or 0.0, best.get(row["schedule"], 0.0))
    return best


def test_who_is_ahead_with_real_arithmetic() -> None:
    """On two ranks, against the best setting of SID."""
    ratios = [over_best_sid(rows_of(name)) for name in REAL]
    assert min(ratio["best BP pipeline"] for ratio in ratios) > 1.05
    assert min(ratio["DDP"] for ratio in ratios) > 0.97
    assert [ratio["one process, 2 threads"] < 1 for ratio in ratios] == [True, True, False]


def test_ranks_of_a_stream_work() -> None:
    """The share of the measured timeline in which each rank works, from its first piece on."""
    lanes = read("emulated_k8", "timelines.json")["sid streaming sharded M=8"]["measured"]
    shares = []
    for lane in lanes:
        work = [(start, end) for phase, _, start, end in lane if phase in COMPUTE and phase != "extractor forward"]
        begin = min(start for start, _ in work)
        last = max(end for *_, end in lane)
        shares.append(sum(end - start for start, end in work) / (last - begin))
    assert len(shares) == 8
    assert min(shares) > 0.97


def test_a_staleness_of_one_costs_less_than_half_a_point() -> None:
    for name in ("digits", "fashion_mnist"):
        fused, late = (accuracies(name, staleness) for staleness in (0, 1))
        assert len(fused) == len(late) == 3
        assert 100 * (statistics.mean(fused) - statistics.mean(late)) < 0.5


def accuracies(name: str, staleness: int) -> list[float]:
    """One for each seed, without a remedy, of the runs that were not drained for observations."""
    rows = read("staleness", f"{name}.json")["rows"]
    wanted = (staleness, "none", 0)
    return [row["test_accuracy"] for row in rows if (row["staleness"], row["remedy"], row["diagnose"]) == wanted]


def test_a_checkpoint_costs_little() -> None:
    """One every 50 steps, for which training does not wait."""
    report = read("checkpoint_cost.json")
    assert report["settings"]["steps_between"] == 50
    assert next(row["ratio"] for row in report["rows"] if row["checkpoints"] == "asynchronous") < 1.05


def test_bounds_of_sixteen_ranks_are_marked() -> None:
    """A pipeline that would take long to simulate is given by a bound, which has no bubble."""
    (report,) = read("projection_emulated", "projection.json")["rows"]
    found = {p["method"]: p for p in report["projections"] if p["ranks"] == 16}
    for method in ("sid streaming sharded", "ddp ddp whole", "sid fused sharded", "bp 1f1b cut", "bp zero_bubble cut"):
        assert (found[method]["bubble_fraction"] is None) == ("zero_bubble" in method)


def test_first_uses_wait_on_a_gpu() -> None:
    """A kernel's first use waits until the device is idle; an allocation does not."""
    rows = read("gpu", "NVIDIA_H100_80GB_HBM3", "first_use.json")["rows"]
    kernels = [row for row in rows if "allocation" not in row["use"]]
    assert all(row["first_seconds"] > 0.95 * row["busy_seconds"] > 0.4 for row in kernels)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_each_comparison_can_be_made_again(path: Path) -> None:
    """By a command that a page prints."""
    pages = [" ".join(page.read_text().split()) for page in (ROOT / "docs").rglob("*.md")]
    command = json.loads(path.read_text())["environment"]["command"]
    assert any(command in page for page in pages), command
