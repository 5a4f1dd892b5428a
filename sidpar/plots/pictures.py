"""What all pictures of runs share: names are drawn as they are, and a file is there with all of its picture or not."""

import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidpar.errors import StorageError
from sidpar.runs.atomic_files import publish

DPI = 110


def save_picture(figure: Figure, path: Path) -> None:
    """As a PNG that is there whole, or as it was before. Raises StorageError."""
    file = path.resolve()  # a link goes on leading to the picture
    temporary = file.with_name(f".drawing-{os.getpid()}.png")
    try:
        if file.exists():
            file.open("ab").close()  # a picture that may not be written to is not to be replaced either
        try:
            figure.savefig(temporary, dpi=DPI, format="png")
            publish(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(path, error) from error


def add_legend(owner: Axes | Figure, handles: Sequence[Artist], labels: Sequence[str], **style: Any) -> None:
    """A legend of names that are not ours. Matplotlib would take a `$` in one for a formula, and leave out one that
    begins with `_`; so it gets them once their entries are there."""
    legend = owner.legend(list(handles), ["."] * len(handles), **style)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def free_name(stem: str, taken: Container[str]) -> str:
    """stem.png, or the first of stem-2.png, stem-3.png, ... that is not taken."""
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.png"
    return name
