"""Tables and figures of the README are those of the committed results."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sidpar.schedules.phases import COMPUTE
from tests.test_readme import README, RESULTS

PROSE = " ".join(README.split())


def read(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((RESULTS / name / "report.json").read_text())
    return report


METHODS = {
    "SID `streaming`, sharded": ("sid", "streaming", "sharded"),
    "SID `streaming`, replicated": ("sid", "streaming", "replicated"),
    "SID `fused`, sharded": ("sid", "fused", "sharded"),
    "SID `fused`, replicated": ("sid", "fused", "replicated"),
    "SID `two_phase` (the paper's algorithms), sharded": ("sid", "two_phase", "sharded"),
    "BP naive": ("bp", "naive", "root"),
    "BP GPipe": ("bp", "gpipe", "cut"),
    "BP 1F1B": ("bp", "1f1b", "cut"),
    "BP interleaved 1F1B": ("bp", "interleaved", "cut"),
    "BP zero bubble": ("bp", "zero_bubble", "cut"),
    "BP ZBV": ("bp", "zbv", "cut"),
    "BP DualPipeV": ("bp", "dualpipe_v", "cut"),
    "DDP": ("ddp", "ddp", "whole"),
}


def settings(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the cascade, without that of the plan's choice."""
    return [row for row in report["rows"] if row["network"] == "cascade" and not row["key"].endswith(" auto")]


def test_what_a_gpu_showed() -> None:
    folder = RESULTS / "gpu" / "NVIDIA_H100_80GB_HBM3"
    rows = json.loads((folder / "engine_overhead.json").read_text())["rows"]
    small, half, wide = (f"{row['ratio']:.2f}" for row in rows)
    assert f"a step of SimpleCNN takes {small} of the time of a plain loop" in PROSE
    assert f"in bf16 {half}, of `wide_mlp` {wide}" in PROSE
    lines = [line.split("|") for line in (folder / "stacked.txt").read_text().splitlines() if "simple_cnn" in line]
    to_loop = sorted(float(cells[8].split()[0]) for cells in lines)
    assert f"in {to_loop[0]:.2f} to {to_loop[-1]:.2f} of the loop's time" in PROSE
    assert {cells[9].split()[0] for cells in lines if cells[2].strip() == "32"} == {"0.57"}
    assert "with L = 32 in 0.57 of what backpropagation" in PROSE
    uses = json.loads((folder / "first_use.json").read_text())["rows"]
    kernels = [row for row in uses if "allocation" not in row["use"]]
    assert all(row["first_seconds"] > 0.95 * row["busy_seconds"] > 0.4 for row in kernels)
    again = [1000 * row["again_seconds"] for row in kernels]
    assert f"{min(again):.1f} to {max(again):.1f} ms the second time" in PROSE


def speed_table(report: dict[str, Any]) -> list[str]:
    """Measured speed-up over naive backpropagation, the law in brackets, for each M."""
    rows = {(r["method"], r["schedule"], r["extractor"], r["microbatches"]): r for r in settings(report)}
    counts = sorted({r["microbatches"] for r in report["rows"]})
    lines = ["| | " + " | ".join(f"M = {m}" for m in counts) + " |", "| --- " * (len(counts) + 1) + "|"]
    for name, method in METHODS.items():
        cells = []
        for m in counts:
            row = rows.get((*method, m))
            law = "" if row is None or row["law_speedup"] is None else f" ({row['law_speedup']:.2f})"
            cells.append("-" if row is None else f"{row['speedup_vs_naive_bp']:.2f}{law}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def memory_table(report: dict[str, Any], m: int, unit: str) -> list[str]:
    """Peak of saved activations per rank, and what else a rank holds, on the rank that holds most of it."""
    rows = {r["key"]: r for r in report["rows"]}
    size = {"KiB": 2**10, "MiB": 2**20}[unit]
    lines = [
        f"| | saved activations per rank, {unit} | parameters, gradients, optimizer state, versions, {unit} | "
        f"sent, {unit} |"
    ]
    lines.append("| --- " * 4 + "|")
    for name, key in MEMORY.items():
        row = rows[key.format(m=m)]
        saved = ", ".join(f"{saved / size:.1f}" for saved in row["saved_activation_bytes"])
        kinds = ("parameters", "gradients", "optimizer_state", "versions")
        held = max(sum(rank[kind] for kind in kinds) for rank in row["memory"]) / size
        lines.append(f"| {name.format(m=m)} | {saved} | {held:.1f} | {max(row['bytes_sent']) / size:.1f} |")
    return lines


MEMORY = {
    "SID `streaming`, replicated, M = {m}": "sid streaming replicated M={m}",
    "SID `streaming`, sharded, M = {m}": "sid streaming sharded M={m}",
    "SID `fused`, replicated, M = {m}": "sid fused replicated M={m}",
    "SID `fused`, sharded, M = {m}": "sid fused sharded M={m}",
    "SID `two_phase`, replicated, M = {m}": "sid two_phase replicated M={m}",
    "BP GPipe, M = {m}": "bp gpipe cut M={m}",
    "BP 1F1B, M = {m}": "bp 1f1b cut M={m}",
    "BP interleaved 1F1B, M = {m}": "bp interleaved cut M={m}",
    "BP zero bubble, M = {m}": "bp zero_bubble cut M={m}",
    "BP ZBV, M = {m}": "bp zbv cut M={m}",
    "DDP": "ddp ddp whole M=1",
    "BP, one process": "bp one process whole M=1",
    "BP, one process, {m} accumulated parts": "bp one process, accumulation whole M={m}",
    "BP, one process, checkpointing": "bp one process, checkpointing whole M=1",
}


def ratio_table(report: dict[str, Any]) -> list[str]:
    """Step times of real arithmetic, as ratios to the fastest SID."""
    rows = settings(report)
    groups = {
        "SID, streaming": [r for r in rows if r["schedule"] == "streaming"],
        "SID, synchronous": [r for r in rows if r["schedule"] in ("fused", "two_phase")],
        "best BP pipeline": [r for r in rows if r["method"] == "bp" and not r["schedule"].startswith("one process")],
        "DDP": [r for r in rows if r["method"] == "ddp"],
        "one process, 1 thread": [r for r in rows if r["key"] == "bp one process whole M=1"],
        "one process, 2 threads": [
            r for r in rows if r["schedule"] == "one process, 2 threads" and r["method"] == "bp"
        ],
    }
    best = {name: min(group, key=lambda row: row["step_ms"]["median"]) for name, group in groups.items()}
    best["SID, `parallel: auto`"] = next(row for row in report["rows"] if row["key"].endswith(" auto"))
    sid = min(best[f"SID, {kind}"]["step_ms"]["median"] for kind in ("streaming", "synchronous"))
    lines = ["| | setting | step, ms (p10 to p90) | step : that of the best SID tried |", "| --- " * 4 + "|"]
    for name, row in best.items():
        step = row["step_ms"]
        lines.append(
            f"| {name} | {row['schedule']}, {row['extractor']}, M = {row['microbatches']} | {step['median']:.0f} "
            f"({step['p10']:.0f} to {step['p90']:.0f}) | {step['median'] / sid:.2f} |"
        )
    return lines


@pytest.mark.parametrize("name", ["emulated_k4", "emulated_k8"])
def test_speed_tables(name: str) -> None:
    assert "\n".join(speed_table(read(name))) in README


STREAMS = {
    "SID `streaming`, sharded": "sid streaming sharded M=8",
    "SID `streaming`, replicated": "sid streaming replicated M=8",
    "SID `fused`, sharded": "sid fused sharded M=8",
    "BP 1F1B": "bp 1f1b cut M=8",
    "BP naive": "bp naive root M=1",
}


def stream_table(report: dict[str, Any]) -> list[str]:
    """Speed-up over naive backpropagation, and how much of a step the busiest rank works."""
    rows = {row["key"]: row for row in report["rows"]}
    lines = []
    for name, key in STREAMS.items():
        row, median = rows[key], rows[key]["step_ms"]["median"]
        busiest = max(sum(ms for phase, ms in rank.items() if phase in COMPUTE) for rank in row["phases_ms"])
        cells = [row["speedup_vs_naive_bp"], row["law_speedup"], row["model_step_ms"] / median, busiest / median]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def test_stream_table() -> None:
    assert "\n".join(stream_table(read("emulated_k8"))) in README


def test_ranks_of_a_stream_work() -> None:
    """The share of the measured timeline in which each rank works, from its first piece on."""
    lanes = json.loads((RESULTS / "emulated_k8" / "timelines.json").read_text())["sid streaming sharded M=8"][
        "measured"
    ]
    shares = []
    for lane in lanes:
        work = [(start, end) for phase, _, start, end in lane if phase in COMPUTE and phase != "extractor forward"]
        begin = min(start for start, _ in work)
        last = max(end for *_, end in lane)
        shares.append(sum(end - start for start, end in work) / (last - begin))
    assert len(shares) == 8
    assert min(shares) > 0.97
    assert "every rank works for 97 % or more" in " ".join(README.split())


@pytest.mark.parametrize(("name", "m", "unit"), [("emulated_k4", 16, "KiB"), ("wide_mlp_k2", 8, "MiB")])
def test_memory_tables(name: str, m: int, unit: str) -> None:
    assert "\n".join(memory_table(read(name), m, unit)) in README


@pytest.mark.parametrize("name", ["wide_mlp_k2", "simple_cnn_k2", "digits_k2"])
def test_ratio_tables(name: str) -> None:
    assert "\n".join(ratio_table(read(name))) in README


def test_recomputing() -> None:
    """What the README says of keeping the activations of batches in flight, or computing them twice."""
    rows = {row["key"]: row for row in read("simple_cnn_k2")["rows"]}
    kept, again = (rows[f"sid streaming sharded M=1{more}"] for more in ("", " recomputing"))
    ratio = again["step_ms"]["median"] / kept["step_ms"]["median"]
    sizes = [max(row["saved_activation_bytes"]) / 2**20 for row in (kept, again)]
    text = " ".join(README.split())
    assert f"{ratio:.2f} of the time" in text
    assert f"{sizes[0]:.0f} MiB of them to {sizes[1]:.0f}" in text


def test_sixteen_ranks_are_modelled() -> None:
    (report,) = json.loads((RESULTS / "projection_emulated" / "projection.json").read_text())["rows"]
    found = {p["method"]: p for p in report["projections"] if p["ranks"] == 16}
    ways = {
        "`streaming`": "sid streaming sharded",
        "DDP": "ddp ddp whole",
        "`fused`": "sid fused sharded",
        "1F1B": "bp 1f1b cut",
        "zero bubble at most": "bp zero_bubble cut",
    }
    text = README.split("K = 16, two refiners each")[1].split("[projection_emulated]")[0]
    for name, method in ways.items():
        assert f"{name} {found[method]['speedup_vs_naive_bp']:.2f}" in " ".join(text.split())
        assert (found[method]["bubble_fraction"] is None) == ("at most" in name)


def test_plan_table() -> None:
    text = (RESULTS / "plan" / "plan.txt").read_text()
    assert textwrap.indent(text[text.index("way  ") :].rstrip(), "    ") in README
    command = (
        "python -m sidpar.plan --config configs/digits.yaml --model.name wide_mlp --model.num_refiners 32 --ranks 8"
    )
    assert command in README


def test_stacked_table() -> None:
    """Time of stacked refiners over that of the loop."""
    found = json.loads((RESULTS / "stacked_cpu.json").read_text())["rows"]
    networks, batches = ("simple_cnn", "wide_mlp"), (8, 64, 256)
    ratios = {
        (row["network"], row["num_refiners"], row["batch_size"]): row["ratios"]["stacked_over_loop"]["median"]
        for row in found
    }
    lines = [
        "| refiners | " + " | ".join(f"`{name}`, {b} rows" for name in networks for b in batches) + " |",
        "| --- " * 7 + "|",
    ]
    for count in (4, 8, 16, 32):
        cells = [f"{ratios[name, count, b]:.2f}" for name in networks for b in batches]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    assert "\n".join(lines) in README


def test_staleness_tables() -> None:
    """Those of the report; with a staleness of 1, training loses less than half a point."""
    report = (RESULTS / "staleness" / "report.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE)
    assert len(tables) == 3
    assert all(table in README for table in tables)
    for name in ("digits", "fashion_mnist"):
        rows = json.loads((RESULTS / "staleness" / f"{name}.json").read_text())["rows"]
        fused, late = (
            [r["test_accuracy"] for r in rows if (r["staleness"], r["remedy"], r["diagnose"]) == (s, "none", 0)]
            for s in (0, 1)
        )
        assert len(fused) == len(late) == 3
        loss = 100 * (sum(fused) - sum(late)) / 3
        assert loss < 0.5
        assert f"{loss:.2f} " in README.split("### What staleness costs")[1]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/report.json")), ids=lambda path: path.parent.name)
def test_commands_are_those_of_the_results(path: Path) -> None:
    """Each committed comparison can be made again by a command that the README prints."""
    command = json.loads(path.read_text())["environment"]["command"]
    assert command in " ".join(README.split()), command


def modelled_off(name: str, counts: list[int]) -> float:
    """The largest distance of the cost model from the measured median, over rows with one of these M."""
    rows = [row for row in read(name)["rows"] if row["microbatches"] in counts and row["model_step_ms"] is not None]
    return max(abs(row["model_step_ms"] / row["step_ms"]["median"] - 1) for row in rows)


def test_how_far_the_model_is_off() -> None:
    assert modelled_off("emulated_k4", [1, 4, 16]) <= 0.06
    assert modelled_off("emulated_k8", [1, 8]) <= 0.05
    assert modelled_off("emulated_k8", [32]) <= 0.11
    assert "At K = 4 it is within 6 % of the measured median in every row, at K = 8 within 5 % up to M = 8" in PROSE
    assert "and within 11 % at M = 32" in PROSE


def ratio(name: str, of: str) -> float:
    """A row's step over that of the best SID tried, which streams everywhere, from a table of real arithmetic."""
    return {line.split("|")[1].strip(): float(line.split("|")[4]) for line in ratio_table(read(name))[2:]}[of]


def test_the_answer_at_the_top() -> None:
    """The figures of *Is it faster than backpropagation?*"""
    networks = ("wide_mlp_k2", "simple_cnn_k2", "digits_k2")
    pipelines = [ratio(name, "best BP pipeline") for name in networks]
    ddp = [ratio(name, "DDP") for name in networks]
    alone = [ratio(name, "one process, 2 threads") for name in networks]
    assert f"`streaming` is {min(pipelines):.2f} to {max(pipelines):.2f} times as fast as the best pipeline" in PROSE
    assert min(ddp) > 0.97
    assert f"and between level with DDP and {max(ddp):.2f} times as fast" in PROSE
    assert f"between {100 * (1 - min(alone)):.0f} % faster and {100 * (max(alone) - 1):.0f} % slower than that" in PROSE


def test_checkpoint_table() -> None:
    """What a checkpoint every 50 steps costs; the one that training does not wait for, less than 5 %."""
    report = json.loads((RESULTS / "checkpoint_cost.json").read_text())
    lines = ["| checkpoints | 50 steps, s | of none | training stands still, ms |", "| --- " * 4 + "|"]
    for row in report["rows"]:
        still = "-" if row["checkpoints"] == "none" else f"{1000 * row['blocked_s']['median']:.0f}"
        lines.append(
            f"| {row['checkpoints']} | {row['window_s']['median']:.2f} ({row['window_s']['min']:.2f} to "
            f"{row['window_s']['max']:.2f}) | {row['ratio']:.3f} | {still} |"
        )
    assert "\n".join(lines) in README, "\n".join(lines)
    assert report["settings"]["steps_between"] == 50
    assert next(row["ratio"] for row in report["rows"] if row["checkpoints"] == "asynchronous") < 1.05
