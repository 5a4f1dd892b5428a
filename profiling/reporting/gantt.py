"""Timelines, measured above and modelled below, one lane per rank."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from reporting.figures import Row, Timelines, at, median_ms, note, save
from sidpar.plots.gantt import PHASES, gantt, legend_handles

SPARE = ("#e7298a", "#666666", "#e6ab02", "#1f78b4", "#fb9a99", "#000000")  # for phases that the list does not know


def select(rows: Sequence[Row]) -> list[str]:
    """At most six keys whose timelines tell the story, of each kind the fastest, at the middle M where it exists."""
    counts = sorted({row["microbatches"] for row in rows if row["microbatches"] is not None})
    middle = counts[len(counts) // 2] if counts else None
    kinds: list[tuple[str, tuple[str, ...], str | None]] = [
        ("bp", ("naive",), None),
        ("bp", ("gpipe", "1f1b"), None),
        ("bp", ("zero_bubble", "zbv", "dualpipe_v"), None),
        ("sid", ("fused",), "sharded"),
        ("sid", ("streaming",), "sharded"),
        ("sid", ("streaming",), "replicated"),
    ]
    chosen = []
    for method, schedules, extractor in kinds:
        kind = [row for row in rows if row["method"] == method and row["schedule"] in schedules]
        kind = [row for row in kind if extractor in (None, row["extractor"])]
        kind = [row for row in kind if row["microbatches"] == middle] or kind
        if kind:
            chosen.append(min(kind, key=median_ms)["key"])
    return chosen


def phase_order(phases: Iterable[str]) -> list[str]:
    """Known phases in the order of PHASES, then the others."""
    known = list(PHASES)
    return sorted(set(phases), key=lambda phase: (known.index(phase) if phase in known else len(known), phase))


def timeline(report: dict[str, Any], timelines: Timelines, path: Path) -> None:
    """Gantt charts, measured above modelled, on one time axis so that lengths can be compared."""
    rows = {row["key"]: row for row in report["rows"] if row["key"] in timelines}
    charts = [
        (key, kind, spans) for key in select(list(rows.values())) for kind, spans in timelines[key].items() if spans
    ]
    lanes = [len(spans) for _, _, spans in charts] or [4]
    width, height = 18.0, sum(0.55 + 0.125 * count for count in lanes) + 1.6
    figure, grid = plt.subplots(
        len(lanes), 1, figsize=(width, height), sharex=True, squeeze=False, layout="constrained", height_ratios=lanes
    )
    used = phase_order(span[0] for _, _, spans in charts for rank in spans for span in rank)
    spare = cycle(SPARE)
    colours = {phase: PHASES.get(phase) or next(spare) for phase in used}
    ends = [max((span[3] for rank in spans for span in rank), default=0.0) for _, _, spans in charts]
    horizon = 1000 * max(ends, default=0.0) or 1.0
    for axes, (key, kind, spans), end in zip(grid[:, 0], charts, ends, strict=False):
        gantt(axes, spans, colours, 1000 * end, horizon)
        median = at(rows[key], "step_ms", "median")
        known = f", median of all steps {median:.4g} ms" if kind == "measured" and median is not None else ""
        which = "the first steps of a stream" if rows[key]["schedule"] == "streaming" else f"{1000 * end:.4g} ms"
        weight = "bold" if kind == "measured" else "normal"
        axes.set_title(f"{key}   {kind}: {which}{known}", loc="left", fontsize=9, pad=3, fontweight=weight)
    grid[-1, 0].set_xlabel("ms from the start of the step", fontsize=9)
    if colours:
        figure.legend(handles=legend_handles(colours), loc="outside upper left", ncols=6, fontsize=9, frameon=False)
    note(figure, report, width)
    save(figure, path)
