"""Images of any size, in a folder for each class: decoded while training goes on."""

from pathlib import Path

import torch

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.datasets.folder_listing import SUFFIXES, Listing, images_below, unreadable
from sidpar.data.reader import Reader
from sidpar.data.splits import Files
from sidpar.errors import UsageError


def _load(root: Path, image_size: int = 64, workers: int = 0) -> Dataset:
    *listings, class_names = list_image_folder(root)
    cpu = torch.device("cpu")
    train, test = (
        Files(Reader(found.paths, image_size, workers), torch.tensor(found.labels), cpu) for found in listings
    )
    return Dataset(train, test, class_names, flips=True)


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
        raise unreadable(error) from error


def _list_classes(folder: Path, present: list[str], names: list[str]) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        found = images_below(folder / name)
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


IMAGE_FOLDER = Source("image_folder", _load, {"root": "data", "image_size": 64, "workers": 2})
