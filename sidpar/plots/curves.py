"""Pictures of what one run has recorded: its measures over steps, and by depth."""

from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from sidpar.plots.style import GUIDE, METHODS, SEQUENCES, WIDTH, family, styled
from sidpar.runs.record_reader import MetricRows, Recorded

Colour = str | tuple[float, float, float, float]
MEASURES = {"loss": "loss", "kl": "KL to the label", "accuracy": "accuracy, %"}
LINE = 98
"""Characters of a line of text across a picture."""
_EPOCHS = 6
_FEW = 16
"""Points and lines that are so few have room to be marked, and to be thick."""


@styled
def draw_curves(run: Recorded) -> Figure:
    """Loss, KL and accuracy over steps, train beside test, each refiner in the colour of its depth; learning rate and
    speed below."""
    figure = Figure(figsize=(WIDTH, 7.6), layout="constrained")
    axes = figure.subplots(4, 2, height_ratios=[3, 3, 3, 2], sharex=True, squeeze=False)
    for row, (measure, label) in enumerate(MEASURES.items()):
        for column, kind in enumerate(("train", "test")):
            axes[row, column].set_title(f"{kind} {label}")
            _measure(axes[row, column], run.rows.get(kind), measure)
        _same_scale(axes[row, 0], axes[row, 1])
    colour = METHODS[family(run.config.method, run.config.parallel.schedule)].colour
    for panel, measure in zip(axes[3], ("learning_rate", "images_per_second"), strict=True):
        if "train" in run.rows and measure in run.rows["train"].columns:
            panel.plot(run.rows["train"].steps, run.rows["train"].columns[measure], color=colour)
    for panel, title in zip(axes[3], ("learning rate", "training, images/s"), strict=True):
        panel.set_title(title)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.set_ylim(0, 1.08 * panel.dataLim.y1 if panel.lines else 1)
    _depth_bar(figure, list(axes[:3].flat), _num_refiners(run))
    _title(figure, run)
    return figure


def _measure(axes: Axes, rows: MetricRows | None, measure: str) -> None:
    """One line per refiner, coloured by depth."""
    if rows is None or measure not in rows.columns:
        return
    values = rows.columns[measure] * (100 if measure == "accuracy" else 1)
    marker = "." if len(rows.steps) <= _FEW else ""
    for line, shade in zip(values.T, shades("depth", values.shape[1]), strict=True):
        axes.plot(rows.steps, line, color=shade, lw=1 if values.shape[1] <= _FEW else 0.6, marker=marker)


def _same_scale(train: Axes, test: Axes) -> None:
    """Both sides of a row on one scale; where values span decades, a logarithmic one."""
    for axes in (train, test):
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color=GUIDE)
    values = _values(train, test)
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    logarithmic = _spans_decades(values)
    margin = (high / low) ** 0.04 if logarithmic else 0.04 * (high - low or 1)
    for axes in (train, test):
        if logarithmic:
            scale_by_decades(axes)
        axes.set_ylim(*((low / margin, high * margin) if logarithmic else (low - margin, high + margin)))


def _values(*panels: Axes) -> NDArray[np.float64]:
    """All finite ones that are drawn."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for axes in panels for line in axes.lines]
    values: NDArray[np.float64] = np.concatenate([np.empty(0), *lines])
    return values[np.isfinite(values)]


def _spans_decades(values: NDArray[np.float64]) -> bool:
    return bool(len(values)) and 0 < 20 * values.min() < values.max()


def scale_by_decades(axes: Axes) -> None:
    """A logarithmic scale whose numbers have no small exponents."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


@styled
def draw_depth(run: Recorded, num_classes: int | None) -> Figure:
    """Test accuracy, and KL to the label, of the belief after i = 0..L refiners, at a few epochs of a run that has test
    rows; p_0 is uniform, and guesses.

    Args:
        num_classes: C; where it is not known, p_0 is left out.
    """
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    accuracy, kl = figure.subplots(1, 2)
    rows = run.rows["test"]
    chosen = few(len(rows.steps), _EPOCHS)
    guessed = 100 / num_classes if num_classes else None
    for k, shade in zip(chosen, shades("epoch", len(chosen)), strict=True):
        label = f"epoch {rows.epochs[k]:.0f}"
        by_depth(accuracy, 100 * rows.columns["accuracy"][k], guessed, color=shade, label=label)
        if "kl" in rows.columns:  # which not every rule measures
            by_depth(kl, rows.columns["kl"][k], None, color=shade, label=label)
    finish_by_depth(accuracy, "accuracy")
    finish_by_depth(kl, "kl")
    if guessed:
        mark_chance(accuracy, guessed)
    handles = [line for line in accuracy.lines if not str(line.get_label()).startswith("_")]
    figure.legend(handles=handles, ncols=len(handles), loc="outside lower center", handlelength=1.6, columnspacing=1.2)
    _title(figure, run)
    return figure


def by_depth(axes: Axes, values: NDArray[np.float64], start: float | None, **look: object) -> None:
    """A line over i = 1..L, from p_0 on where its value is known."""
    depths, shown = np.arange(1, len(values) + 1), values
    if start is not None:
        depths, shown = np.arange(len(values) + 1), np.concatenate([[start], values])
    style = {"marker": "o", "ms": 2.5} | look
    if len(values) > 2 * _FEW:
        style["marker"] = ""
    axes.plot(depths, shown, **style)  # type: ignore[arg-type]


def finish_by_depth(axes: Axes, measure: str) -> None:
    """Title and scale of what `by_depth` has filled with a measure."""
    axes.set_title(f"test {MEASURES[measure]}")
    axes.set_xlabel("after refiner")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if measure == "accuracy":
        axes.set_xlim(left=-0.2)
    elif _spans_decades(_values(axes)):
        scale_by_decades(axes)


def mark_chance(axes: Axes, accuracy: float) -> None:
    """The accuracy of a guess, in percent."""
    axes.axhline(accuracy, color=GUIDE, lw=0.8, ls="--")
    place = axes.get_yaxis_transform()
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.7}
    axes.text(0.99, accuracy, "chance", transform=place, va="bottom", ha="right", color=GUIDE, bbox=behind)


def few(count: int, most: int) -> list[int]:
    """Up to `most` of the indices 0..count-1, with the first and the last; closer together where learning is fast."""
    return sorted({round(x) - 1 for x in np.geomspace(1, count, min(most, count))})


def shades(sequence: str, count: int) -> list[Colour]:
    """So many colours of one of `SEQUENCES`, in its order; without its palest."""
    first, last = (0, 0.93) if sequence == "depth" else (0.15, 0.95)
    found: list[Colour] = [tuple(c) for c in colormaps[SEQUENCES[sequence]](np.linspace(first, last, count))]
    return found


def _num_refiners(run: Recorded) -> int:
    return max(len(rows.columns["loss"][0]) for rows in run.rows.values() if "loss" in rows.columns)


def _depth_bar(figure: Figure, axes: list[Axes], count: int) -> None:
    """What the colours of the depths stand for."""
    shown = ScalarMappable(Normalize(0.5, count + 0.5), ListedColormap(shades("depth", count)))
    figure.colorbar(shown, ax=axes, label="after refiner", ticks=MaxNLocator(16, integer=True), aspect=50, pad=0.01)


def _title(figure: Figure, run: Recorded) -> None:
    """Which run this is, and how it was trained: pictures travel alone."""
    text = fill(f"{run.name}: {', '.join(run.traits.values())}", LINE)
    figure.suptitle(text, x=0.01, ha="left", parse_math=False)
