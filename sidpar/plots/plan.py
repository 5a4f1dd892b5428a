"""A plan at a glance: the chosen step on its ranks, and every way's time and memory."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidpar.config.units import human, unit_of
from sidpar.planner.job import Job
from sidpar.planner.report import KINDS_OF_MEMORY, name_of, spoken, verdict
from sidpar.planner.search import MAX_ACTIONS, Option, Plan
from sidpar.plots.gantt import PHASES, Span, gantt, legend_handles
from sidpar.plots.pictures import save_picture
from sidpar.schedules.phases import PHASE

_COLOURS = ("#3f7fc4", "#9ecae1", "#6a3d9a", "#b79fd8", "#f28e2b", "#66c2a5")
_LANES = 32
_FAR = 3
"""A limit so many times what is needed would leave the bars no room."""


def draw_plan(job: Job, plan: Plan, conditions: Mapping[str, str], path: Path) -> None:
    """As a PNG. A timeline that would take long to simulate is left out, and of many ranks the first are drawn.

    Raises StorageError.
    """
    drawn = plan.chosen if plan.chosen is not None and plan.chosen.candidate.actions(job) <= MAX_ACTIONS else None
    lanes = 0 if drawn is None else min(_LANES, drawn.candidate.holding.num_ranks)
    bars = len(plan.options)
    heights = [1.2 + 0.13 * lanes, 0.8 + 0.24 * bars] if lanes else [0.8 + 0.24 * bars]
    figure = Figure(figsize=(15, sum(heights) + 1.2), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    if drawn is not None:
        _timeline(figure.add_subplot(grid[0, :]), job, drawn, lanes)
    times, memory = (figure.add_subplot(grid[-1, column]) for column in (0, 1))
    _times(times, job, plan)
    _memory(memory, job, plan)
    figure.suptitle(fill(verdict(plan), 130), x=0.01, ha="left", fontsize=12, fontweight="bold")
    caption = "\n".join(f"{name}: {value}" for name, value in conditions.items())
    figure.supxlabel(caption, x=0.01, ha="left", multialignment="left", fontsize=8, color="#444444")
    save_picture(figure, path)


def _timeline(axes: Axes, job: Job, option: Option, lanes: int) -> None:
    """The modelled step; of a stream, its first steps."""
    timeline = option.candidate.predict(job, keep_spans=True).timeline
    assert timeline is not None
    spans: list[list[Span]] = [
        [(PHASE[action.do], str(action), start, end) for start, end, action in lane] for lane in timeline.spans[:lanes]
    ]
    found = {span[0] for lane in spans for span in lane}
    colours = {phase: colour for phase, colour in PHASES.items() if phase in found}
    end = 1000 * timeline.makespan
    gantt(axes, spans, colours, end, end)
    axes.set_title(f"{name_of(option)}, predicted", loc="left", fontsize=9)
    axes.set_xlabel("ms", fontsize=9)
    axes.legend(
        handles=legend_handles(colours), ncols=6, fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1)
    )


def _times(axes: Axes, job: Job, plan: Plan) -> None:
    """Hatched where it is a bound, pale where it does not fit."""
    for place, option in enumerate(plan.options):
        colour = "#3f7fc4" if option.candidate.learns_locally else "#999999"
        bound = "//" if option.bubble is None else None
        axes.barh(place, 1000 * option.seconds, color=colour, alpha=_alpha(job, option), hatch=bound, edgecolor="white")
    _name(axes, plan)
    legend = f"{spoken(plan.rule)} blue; hatched: at least; pale: does not fit"
    axes.set_xlabel(f"predicted ms of a step ({legend})", fontsize=9)


def _memory(axes: Axes, job: Job, plan: Plan) -> None:
    """Of the rank that holds most."""
    most = max((option.largest.total for option in plan.options if option.largest is not None), default=1.0)
    divisor, unit = unit_of(most)
    for place, option in enumerate(plan.options):
        left = 0.0
        for size, colour in zip(asdict(option.largest).values() if option.largest else (), _COLOURS, strict=False):
            axes.barh(place, size / divisor, left=left, color=colour, alpha=_alpha(job, option))
            left += size / divisor
    if job.device_memory is not None and job.device_memory < _FAR * most:
        axes.axvline(job.device_memory / divisor, color="#d62728", lw=1.2)
    _name(axes, plan)
    handles = legend_handles(dict(zip(KINDS_OF_MEMORY, _COLOURS, strict=True)))
    axes.legend(handles=handles, fontsize=8, frameon=False)
    limit = "" if job.device_memory is None else f", of {human(job.device_memory)}"
    axes.set_xlabel(f"{unit} on the rank that holds most{limit}", fontsize=9)


def _alpha(job: Job, option: Option) -> float:
    return 1.0 if option.fits(job) else 0.3


def _name(axes: Axes, plan: Plan) -> None:
    axes.set_yticks(range(len(plan.options)), [name_of(option) for option in plan.options], fontsize=7.5)
    axes.set_ylim(len(plan.options) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
