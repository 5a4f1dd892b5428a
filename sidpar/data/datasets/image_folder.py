"""Images of any size, in a folder for each class: decoded while training goes on."""

from pathlib import Path

import torch

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.datasets.folder_listing import SUFFIXES, Listing, folders_in, images_below, warn_of_skipped
from sidpar.data.reader import Reader
from sidpar.data.splits import Files
from sidpar.errors import UsageError

TEST_FOLDERS = ("val", "valid", "validation", "test")


def _load(root: Path, image_size: int = 64, workers: int = 0) -> Dataset:
    *listings, class_names = list_image_folder(root)
    cpu = torch.device("cpu")
    train, test = (
        Files(Reader(found.paths, image_size, workers), torch.tensor(found.labels), cpu) for found in listings
    )
    return Dataset(train, test, class_names, flips=True)


def list_image_folder(root: Path) -> tuple[Listing, Listing, tuple[str, ...]]:
    """Training files, test files and class names of root/train/<class>/... and root/val/<class>/..., or another of the
    names in `TEST_FOLDERS` where there is no val. Classes and files are in the order of their names; a class may have
    folders of its own."""
    train = root / "train"
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), root / TEST_FOLDERS[0])
    for folder, name in ((train, "train"), (test, f"{TEST_FOLDERS[0]} (or {', '.join(TEST_FOLDERS[1:])})")):
        if not folder.is_dir():
            raise UsageError(
                f"data.root={root.resolve()} has no folder {name}: image_folder needs train/<class>/... and "
                "val/<class>/..."
            )
    names = folders_in(train)
    if not names:
        raise UsageError(f"{train} has no folders: image_folder needs one for each class")
    strangers = [name for name in folders_in(test) if name not in names]
    if strangers:
        raise UsageError(
            f"{test} has {len(strangers)} classes that are not in {train} ({', '.join(strangers[:5])}): add their "
            "training images, or remove them"
        )
    skipped: list[str] = []
    listings = _list_classes(train, names, names, skipped), _list_classes(test, folders_in(test), names, skipped)
    warn_of_skipped(root, skipped)
    return *listings, tuple(names)


def _list_classes(folder: Path, present: list[str], names: list[str], skipped: list[str]) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    for name in present:
        found = images_below(folder / name, skipped)
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
