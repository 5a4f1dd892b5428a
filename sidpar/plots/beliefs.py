"""How the belief about one image evolves from refiner to refiner, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from sidpar.plots.pictures import add_legend, save_picture
from sidpar.plots.style import NOTE, WIDTH, Look, add_caption, series, styled

_REST = Look("#8C8C8C", "", "--")
"""Of the classes that are not named, together."""
_ROW = 1.65
"""Inches: the height of an image with what is said of it."""


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


@styled
def draw_beliefs(axes: Axes, beliefs: Tensor, class_names: Sequence[str], top: int = 5) -> None:
    """A line per leading class over the refiners 0..L, named in a legend with its last belief; 0 is the uniform one."""
    leading = leading_classes(beliefs, top)
    steps, others = range(len(beliefs)), [c for c in range(beliefs.shape[1]) if c not in leading]
    if others:
        label = _label("others", beliefs[-1, others].sum())
        axes.plot(steps, beliefs[:, others].sum(1).numpy(), color=_REST.colour, lw=1, ls=_REST.line, label=label)
    for place, c in enumerate(leading):
        look = series(place)
        axes.plot(
            steps,
            beliefs[:, c].numpy(),
            color=look.colour,
            ls=look.line,
            marker=look.marker,
            label=_label(class_names[c], beliefs[-1, c]),
            zorder=len(leading) + 2 - place,
            lw=2 if place == 0 else 1.1,
            ms=4 if place == 0 else 3,
        )
    axes.set_xlim(-0.15, len(beliefs) - 0.85)
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("after refiner")
    axes.set_ylabel("belief")
    handles = axes.get_lines()
    order = [*range(1, len(handles)), 0] if others else range(len(handles))  # the others last
    add_legend(
        axes,
        [handles[k] for k in order],
        [str(handles[k].get_label()) for k in order],
        loc="upper left",
        bbox_to_anchor=(1, 1.05),
        handlelength=2.2,
        labelspacing=0.3,
    )


@styled
def draw_predictions(
    predictions: Sequence[Prediction], class_names: Sequence[str], path: Path, *, top: int, caption: str
) -> None:
    """Each image beside the belief about it, as one picture. Raises StorageError.

    Args:
        caption: what is said of all of them, below.
    """
    rows = len(predictions)
    figure = Figure(figsize=(WIDTH, _ROW * rows + 0.3), layout="constrained")
    grid = figure.add_gridspec(rows, 2, width_ratios=[1, 2.1])
    for row, prediction in enumerate(predictions):
        picture, lines = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        _show(picture, prediction, class_names)
        draw_beliefs(lines, prediction.beliefs, class_names, top)
    add_caption(figure, caption)
    save_picture(figure, path)


def _show(axes: Axes, prediction: Prediction, class_names: Sequence[str]) -> None:
    image = prediction.image.permute(1, 2, 0).clamp(0, 1)
    axes.imshow((image.squeeze(2) if image.shape[2] == 1 else image).numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    predicted = class_names[int(prediction.beliefs[-1].argmax())]
    axes.set_title(prediction.name, loc="center", color=NOTE, parse_math=False)
    axes.set_xlabel(predicted, fontsize=10, fontweight="bold", parse_math=False)


def _label(name: str, belief: Tensor) -> str:
    return f"{name}  {100 * float(belief):.1f} %"
