"""The pictures of speed-up and memory. They show what the files hold, and nothing else."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import cycle, groupby
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from reporting.figures import Row, at, note, save, saved_activations
from sidpar.config.units import human, unit_of

CATEGORIES = {
    "parameters": "#4e79a7",
    "gradients": "#a0cbe8",
    "optimizer_state": "#bab0ac",
    "versions": "#b07aa1",
    "saved_activations": "#e15759",
    "communication_buffers": "#59a14f",
}
WARM = ("#c1121f", "#f77f00", "#b5179e", "#7f0e0e")  # schedules of SID
COOL = (  # schedules of backpropagation
    *("#1f77b4", "#2ca02c", "#6a3d9a", "#17becf", "#111827", "#8c6d31"),
    *("#0f766e", "#7cb518", "#94a3b8", "#5b8def", "#a78bfa", "#57534e"),
)
MARKERS = {"sharded": "o", "replicated": "s", "root": "^", "cut": "D", "whole": "X"}
FADE = {"sharded": 0.0, "replicated": 0.35, "root": 0.6}


def faded(colour: str, share: float) -> tuple[float, ...]:
    """A colour mixed with a share of white."""
    return tuple(part + (1 - part) * share for part in to_rgb(colour))


def schedule_colours(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Warm colours for SID, cool ones for backpropagation, one for each schedule."""
    found = dict.fromkeys((row["method"], row["schedule"]) for row in sorted(rows, key=order))
    warm, cool = cycle(WARM), cycle(COOL)
    return {pair: next(warm) if pair[0] == "sid" else next(cool) for pair in found}


def order(row: Row) -> tuple[bool, str, bool, str, int, str, float]:
    """SID first, then the pipelines, then one process; within them by schedule, extractor and M."""
    extractors = list(MARKERS)
    place = extractors.index(row["extractor"]) if row["extractor"] in extractors else len(extractors)
    alone = row["schedule"].startswith("one process")
    return (
        row["method"] != "sid",
        row["method"],
        alone,
        row["schedule"],
        place,
        row["network"],
        row["microbatches"] or 1,
    )


def speedup(report: dict[str, Any], path: Path) -> None:
    """Speed-up over naive backpropagation against M, measured and by the law."""
    rows = sorted(report["rows"], key=order)
    colours = schedule_colours(rows)
    width = 11.5
    figure, axes = plt.subplots(figsize=(width, 7), layout="constrained")
    groups = groupby(rows, key=lambda row: (row["method"], row["schedule"], row["extractor"], row["network"]))
    handles = [
        handle
        for (method, schedule, extractor, network), members in groups
        for handle in speedup_line(axes, list(members), method, schedule, extractor, network, colours)
    ]
    handles += law_rings(axes, rows, colours)
    axes.axhline(1, color="#999999", lw=0.8, zorder=1)
    counts = sorted({row["microbatches"] or 1 for row in rows}) or [1]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(count) for count in counts])
    axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    axes.set_ylim(0, None)
    axes.set_xlabel("M, microbatches")
    axes.set_ylabel("speed-up over naive backpropagation on ranks")
    axes.set_title("Speed-up over naive backpropagation", loc="left", fontweight="bold")
    axes.grid(color="#e5e5e5", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False, handlelength=3.2)
    note(figure, report, width)
    save(figure, path)


def speedup_line(
    axes: Axes,
    members: list[Row],
    method: str,
    schedule: str,
    extractor: str,
    network: str,
    colours: dict[tuple[str, str], str],
) -> Iterator[Line2D]:
    """One line over M; nothing where no speed-up was measured."""
    points = [(row["microbatches"] or 1, row["speedup_vs_naive_bp"]) for row in members]
    points = [(count, value) for count, value in points if value is not None]
    if not points:
        return
    sid = method == "sid"
    plain = network != "cascade"
    name = method.upper() if schedule == method else f"{method.upper()} {schedule}"
    yield axes.plot(
        *zip(*points, strict=True),
        color=faded(colours[method, schedule], FADE.get(extractor, 0.0)),
        ls="-" if sid else "-." if plain else "--",
        lw=2.6 if sid else 1.3,
        marker=MARKERS.get(extractor, "P"),
        ms=7 if sid else 5.5,
        mec="white",
        mew=0.6,
        zorder=3 if sid else 4,  # a thin line over a thick one shows both
        label=f"{name}, {extractor}" + (f", {network} network" if plain else ""),
    )[0]


def law_rings(axes: Axes, rows: list[Row], colours: dict[tuple[str, str], str]) -> Iterator[Line2D]:
    """Hollow rings; schedules with the same law share a centre, so each ring is wider than the one before."""
    laws = {(row["method"], row["schedule"], row["microbatches"] or 1, row["law_speedup"]) for row in rows}
    sizes: Counter[tuple[int, str]] = Counter()
    for method, schedule, microbatches, law in sorted(entry for entry in laws if entry[-1] is not None):
        place = (microbatches, f"{law:.2f}")
        size = 9 + 4 * sizes[place]
        sizes[place] += 1
        colour = colours[method, schedule]
        axes.plot(microbatches, law, "o", mfc="none", mec=colour, ms=size, mew=1.2, ls="none", zorder=2)
    if sizes:
        label = "law, colour of the schedule"
        yield Line2D([], [], ls="none", marker="o", mfc="none", mec="black", ms=9, label=label)


def fullest(row: Row) -> dict[str, float] | None:
    """The five categories and the allocator's peak of the rank whose categories' sum is largest: a stack of maxima
    over ranks would be the memory of no rank at all."""
    saved = saved_activations(row)
    ranks = [
        {name: at(memory, name) or 0 for name in CATEGORIES} | {"allocator_peak": at(memory, "allocator_peak") or 0}
        for memory in row["memory"] or [None] * len(saved)
    ]
    for rank, size in zip(ranks, saved, strict=False):
        rank["saved_activations"] = size or 0
    best = max(ranks, key=lambda rank: sum(rank[name] for name in CATEGORIES), default=None)
    return best if best and any(best.values()) else None


def memory(report: dict[str, Any], path: Path) -> None:
    """Stacked bars, rows of equal M side by side."""
    rows = sorted(report["rows"], key=lambda row: (row["microbatches"] or 1, order(row)))
    places, place = [], 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        place += 1 if before is None or (before["microbatches"] or 1) == (row["microbatches"] or 1) else 1.7
        places.append(place)
    stacks = [fullest(row) or {} for row in rows]
    totals = [sum(stack.get(name, 0) for name in CATEGORIES) for stack in stacks]
    largest = max([*totals, *(stack.get("allocator_peak", 0) for stack in stacks)], default=0) or 1
    divisor, unit = unit_of(largest)
    width = 11.5
    figure, axes = plt.subplots(figsize=(width, 2.4 + 0.27 * max(place, 4)), layout="constrained")
    left = [0.0] * len(rows)
    for name, colour in CATEGORIES.items():
        sizes = [stack.get(name, 0) / divisor for stack in stacks]
        axes.barh(places, sizes, left=left, color=colour, height=0.78, label=name.replace("_", " "))
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for y, stack, total in zip(places, stacks, totals, strict=True):
        peak = stack.get("allocator_peak", 0)
        allocator = f", allocator's peak {human(peak)}" if peak else ""
        text = f" {human(total)}{allocator}" if stack else " not measured"
        axes.text(max(total, peak) / divisor, y, text, va="center", fontsize=8, color="#333333")
    peaks = [(stack.get("allocator_peak", 0) / divisor, y) for stack, y in zip(stacks, places, strict=True)]
    known = [point for point in peaks if point[0]]
    if known:
        axes.plot(*zip(*known, strict=True), "|", color="black", ms=11, mew=1.6, ls="none")
    axes.set_yticks(places, [row["key"] for row in rows], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(place, 1) + 0.7, 0.3)
    axes.set_xlim(0, (1.35 if known else 1.12) * largest / divisor)
    axes.set_xlabel(f"{unit}, on the rank that holds most")
    axes.set_title("Memory of a rank", loc="left", fontweight="bold")
    axes.grid(axis="x", color="#e5e5e5", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=5, fontsize=8.5, frameon=False)
    note(figure, report, width)
    save(figure, path)
