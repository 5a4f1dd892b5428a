"""The files in folders of images, and their labels. Nothing is decoded here."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidpar.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".psd", ".svg", ".dng", ".cr2", ".nef")
"""Formats of images that are not supported."""
LEFTOVERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "#recycle")
"""Folders that archives, file managers and storage systems leave behind. Names that begin with a dot are ignored
too."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """Files and their labels, in the order of the dataset."""

    paths: list[str]
    labels: list[int]


def is_leftover(name: str) -> bool:
    """Whether a folder or a file does not belong to the dataset: `__MACOSX`, `._image.jpg`."""
    return name in LEFTOVERS or name.startswith(".")


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without leftovers. Raises UsageError if the folder cannot be
    read."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_leftover(entry.name))
    except OSError as error:
        raise unreadable(error) from error


def images_below(folder: Path, skipped: list[str]) -> list[str]:
    """The image files in a folder and below, sorted; none where there is no such folder. A folder that links lead to
    again is listed once, under the first of its names. Files that look like images but are not listed are added to
    `skipped`. Raises UsageError if a folder cannot be read."""
    found: list[str] = []
    for path in _files_below(folder):
        name = os.path.basename(path).lower()
        if name.endswith(SUFFIXES) and not is_leftover(name):
            found.append(path)
        elif name.endswith((*SUFFIXES, *UNREAD)):
            skipped.append(path)
    return sorted(found)


def warn_of_skipped(root: Path, skipped: list[str]) -> None:
    """Say once how many files of a dataset are not read."""
    if skipped:
        _log.warning(
            f"{len(skipped)} files in {root} are skipped, because they are hidden files or images in a format that is "
            f"not supported, such as {min(skipped)}"
        )


def _files_below(folder: Path) -> Iterator[str]:
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(parent)
        here = status.st_dev, status.st_ino
        if here in visited:
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not is_leftover(name))  # the first of its names everywhere
        yield from (os.path.join(parent, file) for file in files)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise unreadable(error) from error


def unreadable(error: OSError) -> UsageError:
    return UsageError(f"the folder {error.filename} cannot be read ({error.strerror}): make it readable, or remove it")
