"""The tables of the site: what one committed comparison says about a question, in Markdown."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from reporting.figures import Row, is_auto, median_ms
from reporting.tables import table
from sidpar.schedules.phases import COMPUTE

RESULTS = Path(__file__).parents[1] / "results"

METHODS = {
    "SID `streaming`, sharded": "sid streaming sharded",
    "SID `streaming`, replicated": "sid streaming replicated",
    "SID `fused`, sharded": "sid fused sharded",
    "SID `fused`, replicated": "sid fused replicated",
    "SID `two_phase` (the paper's algorithms), sharded": "sid two_phase sharded",
    "BP naive": "bp naive root",
    "BP GPipe": "bp gpipe cut",
    "BP 1F1B": "bp 1f1b cut",
    "BP interleaved 1F1B": "bp interleaved cut",
    "BP zero bubble": "bp zero_bubble cut",
    "BP ZBV": "bp zbv cut",
    "BP DualPipeV": "bp dualpipe_v cut",
    "DDP": "ddp ddp whole",
}
STREAMS = {
    "SID `streaming`, sharded": "sid streaming sharded M=8",
    "SID `streaming`, replicated": "sid streaming replicated M=8",
    "SID `fused`, sharded": "sid fused sharded M=8",
    "BP 1F1B": "bp 1f1b cut M=8",
    "BP naive": "bp naive root M=1",
}
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


def rows_of(name: str) -> dict[str, Row]:
    """The rows of `results/NAME/report.json` by their keys."""
    report: dict[str, Any] = json.loads((RESULTS / name / "report.json").read_text())
    return {row["key"]: row for row in report["rows"]}


def speed_table(name: str) -> str:
    """Measured speed-up over naive backpropagation for each M, in brackets what the law of the schedule predicts."""
    rows = rows_of(name)
    counts = sorted({row["microbatches"] for row in rows.values()})
    lines = [
        (label, *(_speed_up(rows.get(f"{method} M={count}")) for count in counts)) for label, method in METHODS.items()
    ]
    return table(["", *(f"M = {count}" for count in counts)], lines)


def _speed_up(row: Row | None) -> str:
    if row is None:
        return "-"
    law = "" if row["law_speedup"] is None else f" ({row['law_speedup']:.2f})"
    return f"{row['speedup_vs_naive_bp']:.2f}{law}"


def stream_table(name: str) -> str:
    """Speed-up over naive backpropagation, and how much of a step the busiest rank works."""
    rows, lines = rows_of(name), []
    for label, key in STREAMS.items():
        row, median = rows[key], median_ms(rows[key])
        busiest = max(sum(ms for phase, ms in rank.items() if phase in COMPUTE) for rank in row["phases_ms"])
        cells = [row["speedup_vs_naive_bp"], row["law_speedup"], row["model_step_ms"] / median, busiest / median]
        lines.append((label, *(f"{cell:.2f}" for cell in cells)))
    return table(["", "speed-up", "law", "model : measured", "busiest rank's work : step"], lines)


def memory_table(name: str, m: int, unit: Literal["KiB", "MiB"]) -> str:
    """Peak of saved activations on each rank; what else a rank holds, on the rank that holds most of it; what it
    sends."""
    rows, size, lines = rows_of(name), {"KiB": 2**10, "MiB": 2**20}[unit], []
    for label, key in MEMORY.items():
        row = rows[key.format(m=m)]
        saved = ", ".join(f"{saved / size:.1f}" for saved in row["saved_activation_bytes"])
        kinds = ("parameters", "gradients", "optimizer_state", "versions")
        held = max(sum(rank[kind] for kind in kinds) for rank in row["memory"]) / size
        lines.append((label.format(m=m), saved, f"{held:.1f}", f"{max(row['bytes_sent']) / size:.1f}"))
    held_by = f"parameters, gradients, optimizer state, versions, {unit}"
    return table(["", f"saved activations per rank, {unit}", held_by, f"sent, {unit}"], lines)


def best_of_kinds(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Of each kind of training in a comparison of real arithmetic, the row with the shortest step; last the plan's own
    choice."""
    tried = [row for row in rows.values() if row["network"] == "cascade" and not is_auto(row)]
    kinds = {
        "SID, streaming": [row for row in tried if row["schedule"] == "streaming"],
        "SID, synchronous": [row for row in tried if row["schedule"] in ("fused", "two_phase")],
        "best BP pipeline": [
            row for row in tried if row["method"] == "bp" and not row["schedule"].startswith("one process")
        ],
        "DDP": [row for row in tried if row["method"] == "ddp"],
        "one process, 1 thread": [rows["bp one process whole M=1"]],
        "one process, 2 threads": [
            row for row in tried if row["method"] == "bp" and row["schedule"] == "one process, 2 threads"
        ],
        "SID, `parallel: auto`": [row for row in rows.values() if is_auto(row)],
    }
    return {kind: min(found, key=median_ms) for kind, found in kinds.items()}


def over_best_sid(rows: Mapping[str, Row]) -> dict[str, float]:
    """The step of each kind over that of the best setting of SID that was tried."""
    best = {kind: median_ms(row) for kind, row in best_of_kinds(rows).items()}
    sid = min(best["SID, streaming"], best["SID, synchronous"])
    return {kind: step / sid for kind, step in best.items()}


def ratio_table(name: str) -> str:
    """Step times of real arithmetic, and as ratios to the fastest SID."""
    rows = rows_of(name)
    ratios, lines = over_best_sid(rows), []
    for kind, row in best_of_kinds(rows).items():
        step = row["step_ms"]
        setting = f"{row['schedule']}, {row['extractor']}, M = {row['microbatches']}"
        spread = f"{step['median']:.0f} ({step['p10']:.0f} to {step['p90']:.0f})"
        lines.append((kind, setting, spread, f"{ratios[kind]:.2f}"))
    return table(["", "setting", "step, ms (p10 to p90)", "step : that of the best SID of the grid"], lines, texts=2)
