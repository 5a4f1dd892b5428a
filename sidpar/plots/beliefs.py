"""How the belief about one image evolves from refiner to refiner, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from sidpar.plots.pictures import add_legend, save_picture

COLOURS = ("#3f7fc4", "#f28e2b", "#1b7837", "#6a3d9a", "#d62728", "#66c2a5", "#bf5b17", "#e377c2", "#9ecae1", "#7f5539")
"""Of the leading classes, in their order; those behind them are grey."""
_REST = "#b5b5b5"
_COLUMNS = 2


@dataclass(frozen=True)
class Prediction:
    """What a cascade has made of one image."""

    name: str
    image: Tensor
    """[channels, H, W] with values 0..1, for the eye."""
    beliefs: Tensor
    """p_0..p_L, [L + 1, C]."""


def leading_classes(beliefs: Tensor, count: int) -> list[int]:
    """The predicted class, and the classes that some refiner has believed in most: at most `count`, ordered by the last
    belief. So a favourite that was given up on the way is among them.

    Args:
        beliefs: p_0..p_L, [L + 1, C].
    """
    last, predicted = beliefs[-1], int(beliefs[-1].argmax())
    ever = beliefs[1:].amax(0)
    chosen = [predicted, *(int(c) for c in ever.argsort(descending=True) if c != predicted)][:count]
    return sorted(chosen, key=lambda c: (c != predicted, -float(last[c])))


def draw_beliefs(axes: Axes, beliefs: Tensor, class_names: Sequence[str], top: int = 5) -> None:
    """A line per leading class over the refiners 0..L, named in a legend with its last belief; 0 is the uniform one."""
    leading = leading_classes(beliefs, top)
    steps, others = range(len(beliefs)), [c for c in range(beliefs.shape[1]) if c not in leading]
    if others:
        axes.plot(
            steps,
            beliefs[:, others].sum(1).numpy(),
            color=_REST,
            lw=1.2,
            ls="--",
            label=_label("others", beliefs[-1, others].sum()),
        )
    for place, c in enumerate(leading):
        colour = COLOURS[place] if place < len(COLOURS) else _REST
        width, size = (2.4, 4.5) if place == 0 else (1.4, 3)
        axes.plot(
            steps,
            beliefs[:, c].numpy(),
            color=colour,
            label=_label(class_names[c], beliefs[-1, c]),
            zorder=len(leading) + 2 - place,
            lw=width,
            marker="o",
            ms=size,
        )
    axes.set_xlim(-0.15, len(beliefs) - 0.85)
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("after refiner", fontsize=8)
    axes.set_ylabel("belief", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = axes.get_lines()
    order = [*range(1, len(handles)), 0] if others else range(len(handles))  # the others last
    add_legend(
        axes,
        [handles[k] for k in order],
        [str(handles[k].get_label()) for k in order],
        fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1, 1.03),
        handlelength=1.6,
    )


def draw_predictions(
    predictions: Sequence[Prediction], class_names: Sequence[str], path: Path, *, top: int, caption: str
) -> None:
    """Each image beside the belief about it, as one PNG. Raises StorageError."""
    columns = min(_COLUMNS, len(predictions))
    rows = -(-len(predictions) // columns)
    figure = Figure(figsize=(6.6 * columns, 2.15 * rows + 0.35), layout="constrained")
    grid = figure.add_gridspec(rows, 2 * columns, width_ratios=[1, 2.1] * columns)
    for place, prediction in enumerate(predictions):
        row, column = divmod(place, columns)
        picture, lines = (figure.add_subplot(grid[row, 2 * column + k]) for k in (0, 1))
        _show(picture, prediction, class_names)
        draw_beliefs(lines, prediction.beliefs, class_names, top)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color="#444444", parse_math=False)
    save_picture(figure, path)


def _show(axes: Axes, prediction: Prediction, class_names: Sequence[str]) -> None:
    image = prediction.image.permute(1, 2, 0).clamp(0, 1)
    axes.imshow((image.squeeze(2) if image.shape[2] == 1 else image).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#b5b5b5")
    predicted = class_names[int(prediction.beliefs[-1].argmax())]
    axes.set_title(prediction.name, fontsize=8, color="#444444", parse_math=False)
    axes.set_xlabel(predicted, fontsize=12, fontweight="bold", parse_math=False)


def _label(name: str, belief: Tensor) -> str:
    return f"{name}  {100 * float(belief):.1f} %"
