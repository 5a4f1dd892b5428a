"""How every picture looks: its size and fonts, and one colour for one thing.

The colours are those of Okabe and Ito (methods, and series without a colour of their own) and of Paul Tol (actions,
memory): people who are colour-blind can tell them apart. A marker, a line style or a hatch says the same again, for
those who print in grey.
"""

from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

WIDTH = 5.5
"""Inches: a paper's column of text. A wider picture would be shrunk there, and its text with it."""
TEXT = 8.0
"""Points: no text is smaller."""
NOTE, GUIDE, GRID, MARK = "#444444", "#888888", "#e5e5e5", "#b22222"
"""Colours of captions, of lines at a level of interest, of the grid, of limits."""

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "figure.titlesize": TEXT,
    "figure.labelsize": TEXT,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "lines.markeredgewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts are embedded whole, as journals demand
    "ps.fonttype": 42,
    "svg.hashsalt": "sidpar",  # the same picture is the same file
}
styled = rc_context(SETTINGS)
"""Decorates whatever makes or saves a picture. The caller's own settings of matplotlib are left alone."""


@dataclass(frozen=True)
class Look:
    """Of a line."""

    colour: str
    marker: str
    line: Any = "-"
    """A line style of matplotlib's."""


@dataclass(frozen=True)
class Fill:
    """Of a bar."""

    colour: str
    hatch: str = ""


METHODS = {
    "SID streaming": Look("#D55E00", "o"),
    "SID fused": Look("#E69F00", "s"),
    "SID two_phase": Look("#CC79A7", "^"),
    "BP pipeline": Look("#0072B2", "D", "--"),
    "DDP": Look("#009E73", "X", "-."),
    "one process": Look("#4D4D4D", "P", ":"),
}
ACTIONS = {  # in the order of tables and legends
    "extractor forward": Fill("#9F97CF"),
    "refiner forward": Fill("#88CCEE"),
    "forward": Fill("#88CCEE"),
    "refiner backward": Fill("#CC6677"),
    "backward": Fill("#CC6677"),
    "input backward": Fill("#DB94A0"),
    "weight backward": Fill("#882255"),
    "extractor backward": Fill("#332288"),
    "feature reduction": Fill("#44AA99", "/////"),
    "parameter reduction": Fill("#117733", "/////"),
    "send": Fill("#999933", "/////"),
    "receive wait": Fill("#E8E8E8"),
    "optimizer": Fill("#222222"),
}
"""A pipeline's actions have the colours of the refiners'; messages are hatched."""
MEMORY = (
    Fill("#4477AA"),
    Fill("#66CCEE"),
    Fill("#BBBBBB", "////"),
    Fill("#AA3377"),
    Fill("#EE6677"),
    Fill("#228833", "\\\\\\\\"),
)
"""Of parameters, gradients, the optimizer's state, versions, saved activations and communication buffers."""
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":")
SEQUENCES = {"depth": "viridis", "epoch": "plasma_r"}
"""Maps of colours whose lightness says the order."""


def family(method: str, schedule: str | None) -> str:
    """Which of `METHODS` it is. SID's schedules stand for those of every local rule."""
    if method == "ddp":
        return "DDP"
    if method == "local" or str(schedule).startswith(("one process", "one device")):
        return "one process"
    return "BP pipeline" if method == "bp" else f"SID {schedule}"


def series(place: int) -> Look:
    """Of the first, second, ... of things that have no colour of their own; all differ."""
    return Look(_COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)], _LINES[place % len(_LINES)])


def line_handle(look: Look, label: str = "") -> Line2D:
    """For a legend."""
    return Line2D([], [], color=look.colour, marker=look.marker, ls=look.line, label=label)


def bar_handle(fill: Fill, label: str) -> Patch:
    """For a legend."""
    return Patch(facecolor=fill.colour, hatch=fill.hatch, edgecolor="white", lw=0, label=label)


def add_caption(figure: Figure, text: str) -> None:
    """The conditions, below: pictures travel alone."""
    figure.supxlabel(text, x=0.01, ha="left", multialignment="left", color=NOTE, parse_math=False)


def names_beside(axes: Axes, places: list[float], names: list[str]) -> None:
    """Of horizontal bars, from the top down."""
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
