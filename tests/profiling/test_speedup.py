"""The comparison from its command to its files, on two real ranks, short."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

from tests.engines.backpropagation.test_pipeline import SCHEDULES
from tests.harness import run_command

pytestmark = [pytest.mark.processes, pytest.mark.long]

KEYS = {
    "key",
    "method",
    "schedule",
    "extractor",
    "microbatches",
    "world_size",
    "step_ms",
    "samples_per_second",
    "speedup_vs_naive_bp",
    "speedup_vs_best_bp",
    "law_speedup",
    "model_step_ms",
    "bubble_fraction",
    "saved_activation_bytes",
    "peak_memory_bytes",
    "bytes_sent",
    "group",
    "drift",
}
FLAGS = ["--batch", "16", "--microbatches", "1", "4", "--steps", "2", "--warmup", "0", "--time-scale", "0.05"]
FLAGS += ["--stream", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emulated refiners of 5 ms on two ranks: every method, at M = 1 and 4."""
    out = tmp_path_factory.mktemp("speedup")
    done = run_command(2, "profiling/speedup.py", "--workload", "emulated", *FLAGS, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((folder / "report.json").read_text())
    assert report["environment"]["backend"] == "gloo"
    assert report["environment"]["steps"] == 2
    return {row["key"]: row for row in report["rows"]}


def test_every_method_has_a_row(rows: dict[str, dict[str, Any]], folder: Path) -> None:
    expected = ["bp naive root M=1", "ddp ddp whole M=1", "bp one process whole M=1", "sid one process whole M=1"]
    expected += [
        f"sid {s} {e} M={m}"
        for s in ("two_phase", "fused", "streaming")
        for e in ("replicated", "sharded")
        for m in (1, 4)
    ]
    expected += [f"bp {schedule} cut M=4" for schedule in SCHEDULES if schedule != "naive"]
    assert set(expected) <= set(rows)
    (auto,) = [row for row in rows.values() if row["key"].endswith(" auto")]
    assert (auto["method"], auto["network"]) == ("sid", "cascade")
    for row in rows.values():
        assert set(row) >= KEYS
        assert row["step_ms"]["p10"] <= row["step_ms"]["median"] <= row["step_ms"]["p90"]
        assert row["model_step_ms"] > 0
        assert (row["group"], row["drift"]) == (1, 1.0), "without a limit all are timed in turn"
        assert len(row["saved_activation_bytes"]) == len(row["bytes_sent"]) == row["world_size"]
    left_out = json.loads((folder / "report.json").read_text())["left_out"]
    too_few = {entry["key"] for entry in left_out if "needs at least" in entry["reason"]}
    assert too_few == {"bp 1f1b cut M=1", "bp dualpipe_v cut M=1"}
    assert len(too_few) == len(left_out) or "zbv" not in SCHEDULES


def test_traffic_by_hand(rows: dict[str, dict[str, Any]]) -> None:
    """B = 16, features [B, 32], beliefs [B, 10], fp32, K = 2, four layers of 32 x 32 + 32 parameters."""
    state, features, gradients = 16 * 10 * 4, 16 * 32 * 4, 4 * (32 * 32 + 32) * 4
    first, last = rows["sid fused sharded M=4"]["traffic"]
    collectives = {
        "feature gather": {"messages": 1, "bytes": features / 2},
        "feature gradient scatter": {"messages": 4, "bytes": features / 2},
        "parameter gradients": {"messages": 1, "bytes": gradients},
    }
    assert first == collectives | {"state": {"messages": 4, "bytes": state}}
    assert last == collectives
    assert rows["sid streaming sharded M=4"]["traffic"] == [first, last], "a stream's step sends as much"
    replicated = rows["sid fused replicated M=1"]["traffic"][0]
    assert set(replicated) == {"state", "parameter gradients"}
    activations = rows["bp naive root M=1"]["traffic"]
    assert activations[0] == {"activation": {"messages": 2, "bytes": state + features}}
    assert activations[1] == {"activation gradient": {"messages": 2, "bytes": state + features}}


def test_saved_activations_are_what_the_schedules_promise(rows: dict[str, dict[str, Any]]) -> None:
    """Of the last rank, which holds refiners and no layer of the extractor in a pipeline: with M = 4, all four
    microbatches at GPipe and one at 1F1B. How many refiners it holds is balanced by measured costs, which differ with
    M: then GPipe keeps of the whole batch what those refiners keep, one of them 42 inputs and 20 values of beliefs."""

    def last(key: str) -> float:
        return float(rows[key]["saved_activation_bytes"][-1])

    refiner = 16 * (42 + 20) * 4
    assert (last("bp gpipe cut M=4") - last("bp gpipe cut M=1")) % refiner == 0
    assert last("bp 1f1b cut M=4") == pytest.approx(last("bp gpipe cut M=4") / 4)
    assert last("sid fused sharded M=4") < last("sid fused sharded M=1")
    extractor = 4 * (32 * 32 + 32) * 4
    assert last("sid streaming replicated M=4") < last("sid fused replicated M=4"), "one microbatch of the extractor"
    assert last("sid fused sharded M=4") < last("sid streaming sharded M=4") < 2 * last("sid fused sharded M=4")
    assert [memory["versions"] for memory in rows["sid streaming sharded M=4"]["memory"]] == [4 * extractor] * 2, (
        "two, and gradients"
    )
    assert [memory["versions"] for memory in rows["sid fused sharded M=4"]["memory"]] == [0, 0]
    whole = rows["bp one process whole M=1"]["saved_activation_bytes"][0]
    assert rows["bp one process, accumulation whole M=4"]["saved_activation_bytes"][0] == pytest.approx(whole / 4)
    assert rows["bp one process, checkpointing whole M=1"]["saved_activation_bytes"][0] < whole


def test_pictures_and_trace(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    for name in ("speedup.png", "memory.png", "timeline.png", "overview.png"):
        picture = image.imread(folder / name)
        assert len({tuple(pixel) for row in picture[::5] for pixel in row[::5]}) > 10, f"{name} is blank"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0, 1}
    timelines = json.loads((folder / "timelines.json").read_text())
    assert set(timelines) == set(rows)
    assert "| sid | fused | cascade | sharded | 2 | 4 |" in (folder / "report.md").read_text()


def test_memory_is_measured_anew_and_times_are_kept(
    folder: Path, rows: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    changed = [row | {"memory": [], "bytes_sent": [], "saved_activation_bytes": []} for row in rows.values()]
    report = json.loads((folder / "report.json").read_text()) | {"rows": changed}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "timelines.json").write_text((folder / "timelines.json").read_text())
    flags = [*FLAGS, "--only", "fused", "naive", "--keep-times", "--out", str(tmp_path)]
    done = run_command(2, "profiling/speedup.py", "--workload", "emulated", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    after = json.loads((tmp_path / "report.json").read_text())
    assert "--keep-times" in after["environment"]["memory and traffic"]
    for before, row in zip(changed, after["rows"], strict=True):
        again = "fused" in row["key"] or "naive" in row["key"]
        expected = rows[row["key"]] if again else before
        counts = ("saved_activation_bytes", "bytes_sent", "traffic")
        assert {name: row[name] for name in counts} == {name: expected[name] for name in counts}
        assert row["step_ms"] == before["step_ms"]


def test_what_does_not_fit_together_is_timed_in_groups(tmp_path: Path) -> None:
    """In 153.6 KiB: weights and momentum of the cascade, which has 1,056 parameters in each layer and 430 in each
    refiner, are 46 KiB of a method in one process. Naive BP, the reference, has room beside one of them, and streaming,
    which holds versions of its extractor besides, beside none."""
    methods = ["naive", "one process whole", "streaming sharded M=4", "ddp"]
    limit = ["--memory", "1.46484375e-4", "--only", *methods]
    done = run_command(2, "profiling/speedup.py", "--workload", "emulated", *FLAGS, *limit, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    groups = {row["key"]: row["group"] for row in report["rows"]}
    assert groups == {
        "bp naive root M=1": None,
        "ddp ddp whole M=1": 1,
        "bp one process whole M=1": 2,
        "sid one process whole M=1": 3,
    }
    assert report["environment"]["memory for methods"] == "153.60 KiB"
    (left_out,) = report["left_out"]
    assert left_out["key"] == "sid streaming sharded M=4"
    assert left_out["reason"].startswith("needs more than 153.60 KiB: ")
    drifts = {row["group"]: row["drift"] for row in report["rows"]}
    assert drifts.pop(None) is None
    assert all(0.2 < drift < 5 for drift in drifts.values())
    assert all(row["step_ms"]["median"] > 0 for row in report["rows"])
    assert "is in every group" in (tmp_path / "report.md").read_text()
