"""What lies in folders of images: files and labels. Nothing is decoded here."""

import os
from dataclasses import dataclass
from pathlib import Path

from sidpar.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Listing:
    """Files and their labels, in the order of the dataset."""

    paths: list[str]
    labels: list[int]


def images_below(folder: Path) -> list[str]:
    """None where there is no such folder. A folder that links lead to again is listed once, under the first of its
    names. Raises UsageError if one cannot be read."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(parent)
        here = status.st_dev, status.st_ino
        if here in visited:
            folders.clear()
            continue
        visited.add(here)
        folders.sort()  # so that the first of its names is the same on every machine
        found += [
            os.path.join(parent, file) for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return sorted(found)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise unreadable(error) from error


def unreadable(error: OSError) -> UsageError:
    return UsageError(f"the folder {error.filename} cannot be read ({error.strerror}): make it readable, or remove it")
