"""Pictures of what runs have recorded: measures over steps, and accuracy by depth; of one run, or of several."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sidpar.plots.pictures import add_legend
from sidpar.runs.record_reader import MetricRows, Recorded

Colour = tuple[float, float, float, float]
MEASURES = {"loss": "loss", "kl": "KL to the label", "accuracy": "accuracy, %"}
_DEPTH = "viridis"
_EPOCHS = 6
_FEW = 16
"""Points and lines that are so few have room to be marked, and to be thick."""


def draw_curves(runs: Sequence[Recorded]) -> Figure:
    """Loss, KL and accuracy over steps, train beside test; learning rate and speed below. A run alone shows each
    refiner by the colour of its depth; of several, the last refiner of each is compared."""
    figure = Figure(figsize=(12, 12), layout="constrained")
    axes = figure.subplots(4, 2, height_ratios=[3, 3, 3, 2], sharex=True, squeeze=False)
    colours = _run_colours(len(runs))
    for row, (measure, label) in enumerate(MEASURES.items()):
        for column, kind in enumerate(("train", "test")):
            panel = axes[row, column]
            panel.set_title(f"{kind} {label}", loc="left", fontsize=10)
            for run, colour in zip(runs, colours, strict=True):
                _measure(panel, run.rows.get(kind), measure, None if len(runs) == 1 else colour)
        _same_scale(axes[row, 0], axes[row, 1])
    for run, colour in zip(runs, colours, strict=True):
        for panel, measure in zip(axes[3], ("learning_rate", "images_per_second"), strict=True):
            if "train" in run.rows and measure in run.rows["train"].columns:
                panel.plot(run.rows["train"].steps, run.rows["train"].columns[measure], color=colour, lw=1)
    for panel, title in zip(axes[3], ("learning rate", "training, images/s"), strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.set_ylim(0, 1.08 * panel.dataLim.y1 if panel.lines else 1)
    if len(runs) == 1:
        _depth_bar(figure, list(axes[:3].flat), _num_refiners(runs[0]))
    _name(figure, runs, colours, "after the last refiner of each run")
    return figure


def _measure(axes: Axes, rows: MetricRows | None, measure: str, colour: Colour | None) -> None:
    """One line per refiner, coloured by depth; in the given colour, the last refiner only."""
    if rows is None or measure not in rows.columns:
        return
    values = rows.columns[measure] * (100 if measure == "accuracy" else 1)
    marker = "." if len(rows.steps) <= _FEW else ""
    if colour is not None:
        axes.plot(rows.steps, values[:, -1], color=colour, lw=1.3, marker=marker)
        return
    for line, shade in zip(values.T, _depth_colours(values.shape[1]), strict=True):
        axes.plot(rows.steps, line, color=shade, lw=1.2 if values.shape[1] <= _FEW else 0.7, marker=marker)


def _same_scale(train: Axes, test: Axes) -> None:
    """Both sides of a row on one scale; where values span decades, a logarithmic one."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for axes in (train, test) for line in axes.lines]
    values = np.concatenate([np.empty(0), *lines])
    values = values[np.isfinite(values)]
    for axes in (train, test):
        axes.grid(alpha=0.3, lw=0.6)
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color="#888888")
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    logarithmic = low > 0 and high > 20 * low
    margin = (high / low) ** 0.04 if logarithmic else 0.04 * (high - low or 1)
    for axes in (train, test):
        axes.set_yscale("log" if logarithmic else "linear")
        axes.set_ylim(*((low / margin, high * margin) if logarithmic else (low - margin, high + margin)))


def draw_depth(runs: Sequence[Recorded], num_classes: Sequence[int | None]) -> Figure:
    """Test accuracy, and KL to the label, of the belief after i = 0..L refiners; p_0 is uniform, and guesses. A run
    alone shows a few epochs; of several, each shows its last (and, dotted, its first). Every run has test rows.

    Args:
        num_classes: C of each run; where it is not known, p_0 is left out.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    accuracy, kl = figure.subplots(1, 2)
    colours = _run_colours(len(runs))
    for run, colour, classes in zip(runs, colours, num_classes, strict=True):
        rows = run.rows["test"]
        chosen = few(len(rows.steps), _EPOCHS) if len(runs) == 1 else sorted({0, len(rows.steps) - 1})
        shades = colormaps["plasma_r"](np.linspace(0.15, 0.9, len(chosen))) if len(runs) == 1 else [colour] * 2
        for k, shade in zip(chosen, shades, strict=False):
            label = f"epoch {rows.epochs[k]:.0f}" if len(runs) == 1 else None
            style = ":" if len(runs) > 1 and k != chosen[-1] else "-"
            guessed = 100 / classes if classes else None
            _by_depth(accuracy, 100 * rows.columns["accuracy"][k], guessed, shade, style, label)
            if "kl" in rows.columns:  # which not every rule measures
                _by_depth(kl, rows.columns["kl"][k], None, shade, style, label)
    for axes, title in ((accuracy, "test accuracy, %"), (kl, "test KL to the label")):
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("after refiner")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, lw=0.6)
    accuracy.set_xlim(left=-0.2)
    kl.set_xlim(left=0.8)
    if all((np.asarray(line.get_ydata()) > 0).all() for line in kl.lines):
        kl.set_yscale("log")
    if len(runs) == 1:
        (kl if kl.lines else accuracy).legend(frameon=False, fontsize=9)
    known = [100 / classes for classes in num_classes if classes]
    if known:
        accuracy.axhline(min(known), color="#888888", lw=0.8, ls="--")
        accuracy.text(1.01, min(known), "chance", transform=accuracy.get_yaxis_transform(), va="center", fontsize=8)
    _name(figure, runs, colours, "last evaluation of each run; dotted: the first")
    return figure


def _by_depth(
    axes: Axes, values: NDArray[np.float64], start: float | None, colour: Colour, style: str, label: str | None = None
) -> None:
    """A line over i = 1..L, from p_0 on where its value is known."""
    depths, shown = np.arange(1, len(values) + 1), values
    if start is not None:
        depths, shown = np.arange(len(values) + 1), np.concatenate([[start], values])
    axes.plot(
        depths, shown, style, color=colour, marker="o", ms=3 if len(values) <= 2 * _FEW else 0, lw=1.3, label=label
    )


def few(count: int, most: int) -> list[int]:
    """Up to `most` of the indices 0..count-1, with the first and the last; closer together where learning is fast."""
    return sorted({round(x) - 1 for x in np.geomspace(1, count, min(most, count))})


def _num_refiners(run: Recorded) -> int:
    return max(len(rows.columns["loss"][0]) for rows in run.rows.values() if "loss" in rows.columns)


def _depth_colours(count: int) -> list[Colour]:
    colours: list[Colour] = [tuple(c) for c in colormaps[_DEPTH](np.linspace(0, 0.93, count))]
    return colours


def _depth_bar(figure: Figure, axes: list[Axes], count: int) -> None:
    """What the colours of `_depth_colours` stand for."""
    shown = ScalarMappable(Normalize(0.5, count + 0.5), ListedColormap(_depth_colours(count)))
    figure.colorbar(shown, ax=axes, label="after refiner", ticks=MaxNLocator(16, integer=True), aspect=50, pad=0.01)


def _run_colours(count: int) -> list[Colour]:
    """Dark blue for a run alone."""
    names = "tab10" if count <= 10 else "tab20"
    return [(0.12, 0.27, 0.53, 1.0)] if count == 1 else [colormaps[names](k % 20) for k in range(count)]


def _name(figure: Figure, runs: Sequence[Recorded], colours: Sequence[Colour], compared: str) -> None:
    """Which runs these are, and how they were trained: pictures travel alone."""
    if len(runs) == 1:
        figure.suptitle(f"{runs[0].name}: {runs[0].summary}", x=0.01, ha="left", fontsize=11, parse_math=False)
    else:
        figure.suptitle(compared, x=0.01, ha="left", fontsize=11)
        handles = [Line2D([], [], color=colour, lw=2) for colour in colours]
        labels = [f"{label_of(run, runs)}: {run.summary}" for run in runs]
        add_legend(figure, handles, labels, loc="outside lower left", frameon=False, fontsize=8)


def label_of(run: Recorded, runs: Sequence[Recorded]) -> str:
    """The folder's name; its path, where another run's folder has the same name."""
    same = sum(other.name == run.name for other in runs) > 1
    return str(run.folder) if same else run.name
