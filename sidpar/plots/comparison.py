"""Runs laid over each other: what each has reached on the test set, by epoch and by depth."""

from collections.abc import Sequence
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sidpar.plots.curves import LINE, MEASURES, by_depth, finish_by_depth, mark_chance, scale_by_decades
from sidpar.plots.pictures import add_legend
from sidpar.plots.style import METHODS, WIDTH, Look, family, line_handle, series, styled
from sidpar.runs.record_reader import MetricRows, Recorded

_MARKED = 25
"""Evaluations that are so few have room to be marked."""


@styled
def draw_comparison(runs: Sequence[Recorded], num_classes: Sequence[int | None]) -> Figure:
    """Test accuracy and KL to the label: of the last refiner over epochs, and by depth at the last evaluation. Every
    run has test rows. Below, the runs' names and in what they differ; above, what they have in common.

    Args:
        num_classes: C of each run; where it is not known, p_0 is left out.
    """
    measured = [name for name in ("accuracy", "kl") if any(name in run.rows["test"].columns for run in runs)]
    figure = Figure(figsize=(WIDTH, 2.1 * len(measured) + 0.17 * len(runs) + 0.5), layout="constrained")
    axes = figure.subplots(len(measured), 2, squeeze=False, sharey="row")
    looks = looks_of(runs)
    for run, look, classes in zip(runs, looks, num_classes, strict=True):
        for (by_epoch, last), name in zip(axes, measured, strict=True):
            guessed = 100 / classes if name == "accuracy" and classes else None
            _draw(by_epoch, last, run.rows["test"], name, guessed, look)
    for (by_epoch, last), name in zip(axes, measured, strict=True):
        by_epoch.set_title(f"test {MEASURES[name]}, by epoch")
        by_epoch.set_xlabel("epoch")
        by_epoch.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        finish_by_depth(last, name)
        if last.get_yscale() == "log":
            scale_by_decades(by_epoch)
        last.set_title(f"test {MEASURES[name]}, by depth")
    if known := [100 / classes for classes in num_classes if classes]:
        mark_chance(axes[0, 1], min(known))
    _name(figure, runs, looks)
    return figure


def _draw(by_epoch: Axes, last: Axes, rows: MetricRows, name: str, guessed: float | None, look: Look) -> None:
    """One measure of one run."""
    if name not in rows.columns:  # which not every rule measures
        return
    values = rows.columns[name] * (100 if name == "accuracy" else 1)
    marker = look.marker if len(rows.epochs) <= _MARKED else ""
    by_epoch.plot(rows.epochs, values[:, -1], color=look.colour, ls=look.line, marker=marker, ms=3)
    by_depth(last, values[-1], guessed, color=look.colour, ls=look.line, marker=look.marker, ms=3)


def looks_of(runs: Sequence[Recorded]) -> list[Look]:
    """Each method's own, where all methods differ; else each run has one of its own."""
    families = [family(run.config.method, run.config.parallel.schedule) for run in runs]
    if len(set(families)) == len(runs):
        return [METHODS[name] for name in families]
    return [series(place) for place in range(len(runs))]


def label_of(run: Recorded, runs: Sequence[Recorded]) -> str:
    """The folder's name; its path, where another run's folder has the same name."""
    same = sum(other.name == run.name for other in runs) > 1
    return str(run.folder) if same else run.name


def _name(figure: Figure, runs: Sequence[Recorded], looks: Sequence[Look]) -> None:
    common = {name for name, value in runs[0].traits.items() if all(run.traits[name] == value for run in runs)}
    shared = ", ".join(value for name, value in runs[0].traits.items() if name in common)
    figure.suptitle(
        fill(f"{len(runs)} runs: {shared}" if shared else f"{len(runs)} runs", LINE),
        x=0.01,
        ha="left",
        parse_math=False,
    )
    labels = []
    for run in runs:
        own = ", ".join(value for name, value in run.traits.items() if name not in common)
        labels.append(fill(f"{label_of(run, runs)}: {own}" if own else label_of(run, runs), LINE - 8))
    add_legend(figure, [line_handle(look) for look in looks], labels, loc="outside lower left", handlelength=3)
