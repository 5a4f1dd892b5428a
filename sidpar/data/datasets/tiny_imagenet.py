"""Tiny-ImageNet in its official layout: all of its classes or some, in memory."""

from collections.abc import Iterable
from pathlib import Path

import torch

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.datasets.folder_listing import Listing, images_below, warn_of_skipped
from sidpar.data.decoding import read_images
from sidpar.data.splits import Images
from sidpar.errors import UsageError


def _load(root: Path) -> Dataset:
    """All 110,000 images take 1.3 GB, and about 20 s to decode."""
    *listings, class_names = list_tiny_imagenet(root)
    train, test = (Images(read_images(found.paths, 64, exact=True), torch.tensor(found.labels)) for found in listings)
    return Dataset(train, test, class_names, flips=True)


def list_tiny_imagenet(root: Path) -> tuple[Listing, Listing, tuple[str, ...]]:
    """Training files, test files and class names of the official layout: tiny-imagenet-200, in `root` or `root` itself.

    wnids.txt decides which classes there are, so a subset is a shorter wnids.txt: what it does not list is left out.
    """
    base = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    wnids = list(dict.fromkeys(_lines(base / "wnids.txt")))
    label = {wnid: number for number, wnid in enumerate(wnids)}
    paths: list[str] = []
    labels: list[int] = []
    skipped: list[str] = []
    for wnid in wnids:
        found = images_below(base / "train" / wnid / "images", skipped)
        if not found:
            raise UsageError(
                f"wnids.txt lists the class {wnid}, but no images were found in {base / 'train' / wnid / 'images'}: "
                f"restore them, or remove {wnid} from wnids.txt"
            )
        paths += found
        labels += [label[wnid]] * len(found)
    warn_of_skipped(base, skipped)
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
        raise UsageError(f"{notes} lists no image of the {len(label)} classes in wnids.txt: restore the original files")
    return Listing(paths, labels)


def _words(path: Path, wnids: list[str]) -> tuple[str, ...]:
    """Class names; the numbers themselves for those that words.txt does not have, or where it is missing."""
    lines: Iterable[str] = _lines(path) if path.is_file() else ()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _lines(path: Path) -> list[str]:
    """The lines that are not empty, without the spaces around them."""
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


TINY_IMAGENET = Source("tiny_imagenet", _load, {"root": "data"})
