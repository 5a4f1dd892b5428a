"""Images of any size, in a folder for each class: decoded while training goes on."""

from pathlib import Path

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.datasets.folder_listing import Listing, folders_in, list_classes, refuse_strangers, warn_of_skipped
from sidpar.data.splits import Files
from sidpar.errors import UsageError

TEST_FOLDERS = ("val", "valid", "validation", "test")


def _load(root: Path, image_size: int = 64, workers: int = 0) -> Dataset:
    *listings, class_names = list_image_folder(root)
    train, test = (Files.listed(found.paths, found.labels, image_size, workers) for found in listings)
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
    refuse_strangers(test, folders_in(test), train, names)
    skipped: list[str] = []
    listings = list_classes(train, names, names, skipped), list_classes(test, folders_in(test), names, skipped)
    warn_of_skipped(root, skipped)
    return *listings, tuple(names)


IMAGE_FOLDER = Source("image_folder", _load, {"root": "data", "image_size": 64, "workers": 2})
