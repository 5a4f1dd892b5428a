"""Timelines of ranks as lanes of coloured bars."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sidpar.plots.style import GUIDE, Fill, bar_handle
from sidpar.schedules.phases import MESSAGES

LANE = 0.135
"""Inches: a lane has room for its number."""
_MOST_NUMBERS = 16
Span = tuple[str, str, float, float]
"""Phase, label, start and end in seconds."""


def gantt(axes: Axes, spans: Sequence[Sequence[Span]], fills: Mapping[str, Fill], end: float, horizon: float) -> None:
    """One lane per rank, rank 0 on top; `end` of the step and `horizon` of the axis in ms. Messages and waiting lie
    below work that overlaps them."""
    for rank, lane in enumerate(spans):
        for phase, fill in fills.items():
            lengths = [(1000 * start, 1000 * (stop - start)) for name, _, start, stop in lane if name == phase]
            # a gap after each bar, not an edge: an edge has a width of its own and would swallow the short ones
            bars = [(start, length - min(0.12 * length, 0.0012 * horizon)) for start, length in lengths]
            layer = 2 if phase in MESSAGES else 3
            axes.broken_barh(
                bars,
                (rank - 0.45, 0.9),
                facecolor=fill.colour,
                hatch=fill.hatch or None,
                edgecolor="white",
                lw=0,
                snap=False,
                zorder=layer,
            )
    axes.axvline(end, color=GUIDE, lw=0.8, ls=":", zorder=4)
    axes.set_xlim(0, horizon * 1.005)
    axes.set_ylim(len(spans) - 0.4, -0.6)
    axes.set_yticks(range(0, len(spans), 1 if len(spans) <= _MOST_NUMBERS else 4))
    axes.set_ylabel("rank")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def legend_handles(fills: Mapping[str, Fill]) -> list[Patch]:
    """One entry per colour, which several phases may share."""
    labels: dict[Fill, list[str]] = {}
    for phase, fill in fills.items():
        labels.setdefault(fill, []).append(phase)
    return [bar_handle(fill, " / ".join(names)) for fill, names in labels.items()]
