"""Timelines, measured above and modelled below, one lane per rank."""

from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from reporting.figures import Row, Timelines, at, conditions, median_ms, name_of
from sidpar.plots.gantt import LANE, gantt, legend_handles
from sidpar.plots.pictures import save_picture
from sidpar.plots.style import ACTIONS, WIDTH, Fill, add_caption, series, styled


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
    """Known phases in the order of ACTIONS, then the others."""
    known = list(ACTIONS)
    return sorted(set(phases), key=lambda phase: (known.index(phase) if phase in known else len(known), phase))


@styled
def timeline(report: dict[str, Any], timelines: Timelines, path: Path, *, modelled: bool = True) -> None:
    """Gantt charts, measured above `modelled`, on one time axis so that lengths can be compared. Without the modelled
    ones there are half as many, which fits a page."""
    rows = {row["key"]: row for row in report["rows"] if row["key"] in timelines}
    charts = [
        (key, kind, spans)
        for key in select(list(rows.values()))
        for kind, spans in timelines[key].items()
        if spans and (modelled or kind == "measured")
    ]
    lanes = [len(spans) for _, _, spans in charts] or [4]
    height = sum(0.27 + LANE * lane for lane in lanes) + 1.9
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    grid = figure.subplots(len(lanes), 1, sharex=True, squeeze=False, height_ratios=lanes)
    used = phase_order(span[0] for _, _, spans in charts for rank in spans for span in rank)
    spare = count()
    fills = {phase: ACTIONS.get(phase) or Fill(series(next(spare)).colour, "..") for phase in used}
    ends = [max((span[3] for rank in spans for span in rank), default=0.0) for _, _, spans in charts]
    horizon = 1000 * max(ends, default=0.0) or 1.0
    for axes, (key, kind, spans), end in zip(grid[:, 0], charts, ends, strict=False):
        gantt(axes, spans, fills, 1000 * end, horizon)
        median = at(rows[key], "step_ms", "median")
        known = f", median {median:,.0f} ms" if kind == "measured" and median is not None else ""
        which = "first steps" if rows[key]["schedule"] == "streaming" else f"{1000 * end:,.0f} ms"
        name = f"{name_of(rows[key])}, M = {rows[key]['microbatches'] or 1}"
        weight = "bold" if kind == "measured" else "normal"
        axes.set_title(f"{name}, {kind}: {which}{known}", pad=2, fontweight=weight)
    grid[-1, 0].set_xlabel("ms from the start of the step")
    if fills:
        figure.legend(handles=legend_handles(fills), loc="outside upper left", ncols=3, handlelength=1.5)
    add_caption(figure, conditions(report))
    save_picture(figure, path)
