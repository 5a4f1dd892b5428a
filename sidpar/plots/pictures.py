"""How a picture becomes a file: in a format that its suffix names, there whole or not at all."""

import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sidpar.errors import StorageError, UsageError
from sidpar.plots.style import styled
from sidpar.runs.atomic_files import publish

PictureFormat = Literal["png", "pdf", "svg"]
FORMATS: tuple[PictureFormat, ...] = get_args(PictureFormat)
DPI = 200
_OTHERS = ("avif", "bmp", "eps", "gif", "jpeg", "jpg", "pgf", "ps", "raw", "svgz", "tif", "tiff", "webp")
_METADATA: dict[str, dict[str, None]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""Without the date, the same picture is the same file."""


def is_picture(path: Path) -> bool:
    """Whether a path names a picture, by its suffix; else it names a folder. Raises UsageError for other formats."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in _OTHERS:
        raise UsageError(f"{path} cannot be drawn as .{suffix}: give a path that ends in .png, .pdf or .svg")
    return suffix in FORMATS


@styled
def save_picture(figure: Figure, path: Path) -> None:
    """As a file that is there whole, or as it was before. Raises StorageError, and UsageError for another suffix."""
    if not is_picture(path):
        raise UsageError(f"{path} does not say how to draw: give a path that ends in .png, .pdf or .svg")
    kind = path.suffix.lower().removeprefix(".")
    file = path.resolve()  # a link goes on leading to the picture
    temporary = file.with_name(f".drawing-{os.getpid()}.{kind}")
    try:
        if file.exists():
            file.open("ab").close()  # a picture that may not be written to is not to be replaced either
        try:
            figure.savefig(temporary, dpi=DPI, format=kind, metadata=_METADATA[kind])
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
