"""Timelines of ranks as lanes of coloured bars."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sidpar.schedules.phases import MESSAGES

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
Span = tuple[str, str, float, float]
"""Phase, label, start and end in seconds."""


def gantt(axes: Axes, spans: Sequence[Sequence[Span]], colours: Mapping[str, str], end: float, horizon: float) -> None:
    """One lane per rank, rank 0 on top; `end` of the step and `horizon` of the axis in ms. Messages and waiting lie
    below work that overlaps them."""
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


def legend_handles(colours: Mapping[str, str]) -> list[Patch]:
    """One entry per colour, which several phases may share."""
    labels: dict[str, list[str]] = {}
    for phase, colour in colours.items():
        labels.setdefault(colour, []).append(phase)
    return [Patch(color=colour, label=" / ".join(names)) for colour, names in labels.items()]
