"""The pictures of speed-up and memory. They show what the files hold, and nothing else."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from reporting.figures import Row, at, conditions, look_of, name_of, saved_activations
from sidpar.config.units import human, unit_of
from sidpar.plots.pictures import save_picture
from sidpar.plots.style import GUIDE, MEMORY, WIDTH, add_caption, bar_handle, names_beside, styled

CATEGORIES = dict(
    zip(
        ("parameters", "gradients", "optimizer_state", "versions", "saved_activations", "communication_buffers"),
        MEMORY,
        strict=True,
    )
)
EXTRACTORS = {"sharded": "-", "replicated": "--", "root": ":", "cut": "--", "whole": ":"}
"""In their order, with the style of their lines."""
PIPELINES = {
    "naive": "v",
    "gpipe": "<",
    "1f1b": ">",
    "interleaved": "d",
    "zero_bubble": "D",
    "zbv": "h",
    "dualpipe_v": "p",
}
"""Their markers: in colour they are one method."""
ALONE = ("P", "*", "H", "8", "1", "2", "3", "4", "x", "+")
"""Markers of the ways to train in one process."""
BAR = 0.165
"""Inches: a bar has room for its name."""


def order(row: Row) -> tuple[bool, str, bool, str, int, str, float]:
    """SID first, then the pipelines, then one process; within them by schedule, extractor and M."""
    extractors = list(EXTRACTORS)
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


@styled
def speedup(report: dict[str, Any], path: Path) -> None:
    """Speed-up over naive backpropagation against M, measured and by the law."""
    rows = sorted(report["rows"], key=order)
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    axes = figure.subplots()
    alone = list(dict.fromkeys(name_of(row) for row in rows if row["schedule"].startswith("one process")))
    handles = [
        handle
        for name, members in groupby(rows, key=name_of)
        for handle in speedup_line(axes, name, list(members), alone)
    ]
    handles += law_rings(axes, rows)
    axes.axhline(1, color=GUIDE, lw=0.8, zorder=1)
    counts = sorted({row["microbatches"] or 1 for row in rows}) or [1]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(count) for count in counts])
    axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    axes.set_ylim(0, None)
    axes.set_xlabel("M, microbatches")
    axes.set_ylabel("speed-up over naive backpropagation on ranks")
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=2, handlelength=3)
    add_caption(figure, conditions(report))
    save_picture(figure, path)


def speedup_line(axes: Axes, name: str, members: list[Row], alone: list[str]) -> Iterator[Line2D]:
    """One line over M; nothing where no speed-up was measured."""
    points = [(row["microbatches"] or 1, row["speedup_vs_naive_bp"]) for row in members]
    points = [(count, value) for count, value in points if value is not None]
    if not points:
        return
    row, look = members[0], look_of(members[0])
    marker = ALONE[alone.index(name) % len(ALONE)] if name in alone else PIPELINES.get(row["schedule"], look.marker)
    yield axes.plot(
        *zip(*points, strict=True),
        color=look.colour,
        ls=EXTRACTORS.get(row["extractor"], "-"),
        lw=1.6 if row["method"] == "sid" else 1,
        marker=marker,
        ms=5.5,
        mfc=look.colour if row["network"] == "cascade" else "white",
        mec=look.colour if row["network"] != "cascade" or name in alone else "white",
        zorder=3 if row["method"] == "sid" else 4,  # a thin line over a thick one shows both
        label=name,
    )[0]


def law_rings(axes: Axes, rows: list[Row]) -> Iterator[Line2D]:
    """Hollow rings; methods with the same law share a centre, so each ring is wider than the one before."""
    laws = {(look_of(row).colour, row["microbatches"] or 1, row["law_speedup"]) for row in rows}
    rings = {(colour, count, f"{law:.2f}"): law for colour, count, law in laws if law is not None}
    sizes: Counter[tuple[int, str]] = Counter()
    for (colour, microbatches, rounded), law in sorted(rings.items()):
        size = 9 + 3 * sizes[microbatches, rounded]
        sizes[microbatches, rounded] += 1
        axes.plot(microbatches, law, "o", mfc="none", mec=colour, ms=size, mew=1, ls="none", zorder=2)
    if sizes:
        label = "law (ring in the method's colour)"
        yield Line2D([], [], ls="none", marker="o", mfc="none", mec="black", ms=8, label=label)


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


@styled
def memory(report: dict[str, Any], path: Path) -> None:
    """Stacked bars, rows of equal M side by side."""
    rows = sorted(report["rows"], key=lambda row: (row["microbatches"] or 1, order(row)))
    places, heads, place = [], dict[float, int](), 0.0
    for count, members in groupby(rows, key=lambda row: row["microbatches"] or 1):
        heads[place + 1] = count
        places += [place + 2 + k for k, _ in enumerate(members)]
        place = places[-1] + 0.4
    stacks = [fullest(row) or {} for row in rows]
    totals = [sum(stack.get(name, 0) for name in CATEGORIES) for stack in stacks]
    largest = max([*totals, *(stack.get("allocator_peak", 0) for stack in stacks)], default=0) or 1
    divisor, unit = unit_of(largest)
    figure = Figure(figsize=(WIDTH, 1.6 + BAR * max(place, 4)), layout="constrained")
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for name, fill in CATEGORIES.items():
        sizes = [stack.get(name, 0) / divisor for stack in stacks]
        axes.barh(places, sizes, left=left, color=fill.colour, hatch=fill.hatch or None, edgecolor="white", lw=0)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    for y, stack, total in zip(places, stacks, totals, strict=True):
        peak = stack.get("allocator_peak", 0)
        allocator = f", peak {human(peak)}" if peak else ""
        text = f" {human(total)}{allocator}" if stack else " not measured"
        axes.text(max(total, peak) / divisor, y, text, va="center")
    peaks = [(stack.get("allocator_peak", 0) / divisor, y) for stack, y in zip(stacks, places, strict=True)]
    known = [point for point in peaks if point[0]]
    if known:
        axes.plot(*zip(*known, strict=True), "|", color="black", ms=8, mew=1.4, ls="none")
    names = [(y, name_of(row)) for y, row in zip(places, rows, strict=True)]
    names += [(y, f"M = {count}") for y, count in heads.items()]
    names_beside(axes, [y for y, _ in names], [name for _, name in names])
    for label in axes.get_yticklabels()[len(rows) :]:
        label.set_fontweight("bold")
    axes.set_ylim(max(place, 1) + 0.5, 0.3)
    axes.set_xlim(0, (1.9 if known else 1.32) * largest / divisor)
    axes.set_xlabel(f"{unit} on the rank that holds most" + (" (mark: the allocator's peak)" if known else ""))
    axes.spines["left"].set_visible(False)
    handles = [bar_handle(fill, name.replace("_", " ")) for name, fill in CATEGORIES.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.5)
    add_caption(figure, conditions(report))
    save_picture(figure, path)
