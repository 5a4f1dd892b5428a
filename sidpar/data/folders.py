"""What lies in a folder of images: files, labels and names of classes. Nothing is decoded here."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sidpar.errors import UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Listing:
    """Files and their labels, in the order of the dataset."""

    paths: list[str]
    labels: list[int]


def list_image_folder(root: Path) -> tuple[Listing, Listing, tuple[str, ...]]:
    """Training files, test files and class names of root/train/<class>/... and root/val/<class>/..., or root/test where
    there is no val. Classes and files are in the order of their names; a class may have folders of its own."""
    train = root / "train"
    test = root / "val" if (root / "val").is_dir() else root / "test"
    for folder, name in ((train, "train"), (test, "val (or test)")):
        if not folder.is_dir():
            raise UsageError(
                f"data.root={root.resolve()} has no folder {name}: image_folder needs train/<class>/... and "
                "val/<class>/..."
            )
    names = _class_folders(train)
    if not names:
        raise UsageError(f"{train} has no folders: image_folder needs one for each class")
    strangers = [name for name in _class_folders(test) if name not in names]
    if strangers:
        raise UsageError(
            f"{test} has {len(strangers)} classes that {train} has not ({', '.join(strangers[:5])}): add their "
            "training images, or remove them"
        )
    return _list_classes(train, names, names), _list_classes(test, _class_folders(test), names), tuple(names)


def _class_folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(error) from error


def _list_classes(folder: Path, present: list[str], names: list[str]) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        found = _images_below(folder / name)
        if not found:
            raise UsageError(
                f"no images found in {folder / name} (files that end in {', '.join(SUFFIXES)}): add some, or remove "
                "the folder"
            )
        paths += found
        labels += [names.index(name)] * len(found)
    if not paths:
        raise UsageError(f"no images found in {folder}: it needs a folder for each class")
    return Listing(paths, labels)


def _images_below(folder: Path) -> list[str]:
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
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> UsageError:
    return UsageError(f"the folder {error.filename} cannot be read ({error.strerror}): make it readable, or remove it")


def list_tiny_imagenet(root: Path) -> tuple[Listing, Listing, tuple[str, ...]]:
    """The same of the official layout: tiny-imagenet-200, in `root` or `root` itself.

    wnids.txt decides which classes there are, so a subset is a shorter wnids.txt: what it does not list is left out.
    """
    base = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    wnids = list(dict.fromkeys(_lines(base / "wnids.txt")))
    label = {wnid: number for number, wnid in enumerate(wnids)}
    paths: list[str] = []
    labels: list[int] = []
    for wnid in wnids:
        found = _images_below(base / "train" / wnid / "images")
        if not found:
            raise UsageError(
                f"wnids.txt lists the class {wnid}, but no images were found in {base / 'train' / wnid / 'images'}: "
                f"restore them, or remove {wnid} from wnids.txt"
            )
        paths += found
        labels += [label[wnid]] * len(found)
    return Listing(paths, labels), _validation(base / "val", label), _words(base / "words.txt", wnids)


def _validation(folder: Path, label: dict[str, int]) -> Listing:
    notes = folder / "val_annotations.txt"
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(_lines(notes), start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise UsageError(f"{notes}, line {number}: expected a file, a tab and its class, got {line!r}")
        if columns[1] in label:
            paths.append(str(folder / "images" / columns[0]))
            labels.append(label[columns[1]])
    if not paths:
        raise UsageError(
            f"{notes} names no image of the {len(label)} classes of wnids.txt: restore one of the two files"
        )
    return Listing(paths, labels)


def _words(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """Class names; the numbers themselves for those that words.txt does not have, or where it is missing."""
    lines: Iterable[str] = _lines(path) if path.is_file() else ()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _lines(path: Path) -> list[str]:
    """What stands in each line that is not empty."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"tiny_imagenet is not in its official layout: {path} cannot be read ({error}); set data.root to the "
            "folder that holds tiny-imagenet-200"
        ) from error
    lines = [line for line in lines if line]
    if not lines:
        raise UsageError(f"{path} is empty: restore it")
    return lines
