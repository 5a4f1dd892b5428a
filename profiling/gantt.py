"""Timelines, measured above and modelled below, one lane per rank."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

from figures import Row, Span, Timelines, at, median_ms, note, save
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sidpar.phases import COMPUTE, Phase

PHASES = {  # in the order of tables and legends; a pipeline's phases have the colours of the refiners'
    "extractor forward": "#b79fd8",
    "refiner forward": "#3f7fc4",
    "forward": "#3f7fc4",
    "refiner backward": "#f28e2b",
    "backward": "#f28e2b",
    "input backward": "#f9b66b",
    "weight backward": "#bf5b17",
    "extractor backward": "#6a3d9a",
    "feature reduction": "#66c2a5",
    "parameter reduction": "#1b7837",
    "send": "#a6d854",
    "receive wait": "#dcdcdc",
    "optimizer": "#7f5539",
}
MESSAGES = tuple(phase for phase in get_args(Phase) if phase not in COMPUTE)  # all of them wait for other ranks
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
    labels: dict[str, list[str]] = {}
    for phase, colour in colours.items():
        labels.setdefault(colour, []).append(phase)
    handles = [Patch(color=colour, label=" / ".join(names)) for colour, names in labels.items()]
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=6, fontsize=9, frameon=False)
    note(figure, report, width)
    save(figure, path)


def gantt(axes: Axes, spans: list[list[Span]], colours: dict[str, str], end: float, horizon: float) -> None:
    """One lane per rank, rank 0 on top. Messages and waiting lie below work that overlaps them."""
    for rank, lane in enumerate(spans):
        for phase, colour in colours.items():
            lengths = [(1000 * start, 1000 * (stop - start)) for name, _, start, stop in lane if name == phase]
            # a gap after each bar, not an edge: an edge has a width of its own and would swallow the short ones
            bars = [(start, length - min(0.12 * length, 0.0005 * horizon)) for start, length in lengths]
            layer = 2 if phase in MESSAGES else 3
            axes.broken_barh(bars, (rank - 0.45, 0.9), facecolor=colour, lw=0, snap=False, zorder=layer)
    axes.axvline(end, color="#444444", lw=0.8, ls=":", zorder=4)
    axes.set_xlim(0, horizon * 1.005)
    axes.set_ylim(len(spans) - 0.4, -0.6)
    axes.set_yticks(range(len(spans)), [str(rank) for rank in range(len(spans))], fontsize=6.5)
    axes.set_ylabel("rank", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e5e5e5", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
