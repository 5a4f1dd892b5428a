"""A plan at a glance: the chosen step on its ranks, and every way's time and memory."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from sidpar.config.units import human, unit_of
from sidpar.planner.job import Job
from sidpar.planner.report import KINDS_OF_MEMORY, name_of, verdict
from sidpar.planner.search import MAX_ACTIONS, Option, Plan
from sidpar.plots.gantt import LANE, Span, gantt, legend_handles
from sidpar.plots.pictures import save_picture
from sidpar.plots.style import (
    ACTIONS,
    MARK,
    MEMORY,
    METHODS,
    WIDTH,
    add_caption,
    bar_handle,
    family,
    names_beside,
    styled,
)
from sidpar.schedules.phases import PHASE

_LANES = 32
_BAR = 0.16
"""Inches: a bar has room for its name."""
_FAR = 3
"""A limit so many times what is needed would leave the bars no room."""


@styled
def draw_plan(job: Job, plan: Plan, conditions: Mapping[str, str], path: Path) -> None:
    """As one picture. A timeline that would take long to simulate is left out, and of many ranks the first are drawn.

    Raises StorageError.
    """
    drawn = plan.chosen if plan.chosen is not None and plan.chosen.candidate.actions(job) <= MAX_ACTIONS else None
    lanes = 0 if drawn is None else min(_LANES, drawn.candidate.holding.num_ranks)
    heights = [1.2 + LANE * lanes] if lanes else []
    heights.append(1.3 + _BAR * len(plan.options))
    figure = Figure(figsize=(WIDTH, sum(heights) + 1.1), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if drawn is not None:
        _timeline(parts[0], job, drawn, lanes)
    times, memory = parts[-1].subplots(1, 2, sharey=True)
    _times(times, job, plan)
    _memory(memory, job, plan)
    names_beside(times, list(range(len(plan.options))), [_short(option) for option in plan.options])
    times.set_ylim(len(plan.options) - 0.4, -0.6)
    memory.tick_params(axis="y", length=0)
    handles = [bar_handle(*pair) for pair in zip(MEMORY, KINDS_OF_MEMORY, strict=True)]
    parts[-1].legend(handles=handles, ncols=6, loc="outside upper right", handlelength=1.2, columnspacing=1.2)
    figure.suptitle(fill(verdict(plan), 78), x=0.01, ha="left", fontweight="bold")
    add_caption(figure, "\n".join(fill(f"{name}: {value}", 88) for name, value in conditions.items()))
    save_picture(figure, path)


def _timeline(part: SubFigure, job: Job, option: Option, lanes: int) -> None:
    """The modelled step; of a stream, its first steps."""
    timeline = option.candidate.predict(job, keep_spans=True).timeline
    assert timeline is not None
    spans: list[list[Span]] = [
        [(PHASE[action.do], str(action), start, end) for start, end, action in lane] for lane in timeline.spans[:lanes]
    ]
    found = {span[0] for lane in spans for span in lane}
    fills = {phase: each for phase, each in ACTIONS.items() if phase in found}
    end, axes = 1000 * timeline.makespan, part.subplots()
    gantt(axes, spans, fills, end, end)
    axes.set_title(f"{name_of(option)}, predicted")
    axes.set_xlabel("ms")
    part.legend(handles=legend_handles(fills), ncols=4, loc="outside upper left", handlelength=1.5, columnspacing=1.2)


def _times(axes: Axes, job: Job, plan: Plan) -> None:
    """Hatched where it is a bound, pale where it does not fit."""
    for place, option in enumerate(plan.options):
        colour = METHODS[family(option.candidate.method, option.candidate.schedule)].colour
        bound = "//" if option.bubble is None else None
        axes.barh(place, 1000 * option.seconds, color=colour, alpha=_alpha(job, option), hatch=bound, edgecolor="white")
    axes.set_xlabel("predicted ms of a step\n(hatched: at least; pale: does not fit)")
    axes.xaxis.set_major_locator(MaxNLocator(4))


def _memory(axes: Axes, job: Job, plan: Plan) -> None:
    """Of the rank that holds most."""
    most = max((option.largest.total for option in plan.options if option.largest is not None), default=1.0)
    divisor, unit = unit_of(most)
    for place, option in enumerate(plan.options):
        left = 0.0
        for size, each in zip(asdict(option.largest).values() if option.largest else (), MEMORY, strict=False):
            axes.barh(
                place,
                size / divisor,
                left=left,
                color=each.colour,
                hatch=each.hatch or None,
                edgecolor="white",
                lw=0,
                alpha=_alpha(job, option),
            )
            left += size / divisor
    if job.device_memory is not None and job.device_memory < _FAR * most:
        axes.axvline(job.device_memory / divisor, color=MARK, lw=1)
    limit = "" if job.device_memory is None else f",\nof {human(job.device_memory)}"
    axes.set_xlabel(f"{unit} on the fullest rank{limit}")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(visible=False, axis="y")


def _alpha(job: Job, option: Option) -> float:
    return 1.0 if option.fits(job) else 0.35


def _short(option: Option) -> str:
    """The name of a way, without the words that all have."""
    return name_of(option).replace(" extractor)", "").replace(" (", ", ").replace(" with M", ", M")
