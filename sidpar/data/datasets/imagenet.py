"""ImageNet (ILSVRC2012) as published: decoded while training goes on, augmented as is usual for it."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from scipy.io import loadmat

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.datasets.folder_listing import (
    Listing,
    folders_in,
    images_below,
    list_classes,
    refuse_strangers,
    unreadable,
    warn_of_skipped,
)
from sidpar.data.splits import Files
from sidpar.errors import UsageError

SHARE = 224 / 256
"""Test images are resized to 256 pixels and cropped to the 224 in their middle, or both in this relation."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the training images' values in 0..1, which everyone uses."""
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})$")
_DEVKIT = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")
_TABLE = "LOC_val_solution.csv"
_WORDS = "LOC_synset_mapping.txt"
_FOLDERS = (".", "ILSVRC2012_devkit_t12/data", "devkit/data", "val")
"""Where these files may lie."""


def _load(root: Path, image_size: int = 224, workers: int = 0) -> Dataset:
    *listings, class_names = list_imagenet(root)
    train, test = (Files.listed(found.paths, found.labels, image_size, workers, SHARE) for found in listings)
    mean, deviation = ([255 * value for value in values] for values in (MEAN, DEVIATION))
    return Dataset(train, test, class_names, flips=True, crops="resized", share=SHARE, published=(mean, deviation))


def list_imagenet(root: Path) -> tuple[Listing, Listing, tuple[str, ...]]:
    """Training files, test files and class names of root/train/<wnid>/*.JPEG and root/val. That holds a folder for each
    class, or all images as they come out of the archive, with their ground truth in `root`: that of the development
    kit, or LOC_val_solution.csv. Classes are in the order of their WordNet numbers; some of the 1,000 will do."""
    train, val = root / "train", root / "val"
    for folder, what in ((train, "train, with a folder for each class, train/n01440764/..."), (val, "val")):
        if not folder.is_dir():
            raise UsageError(f"data.root={root.resolve()} has no folder {what}: imagenet needs train and val")
    wnids = folders_in(train)
    if not wnids:
        raise UsageError(f"{train} has no folders: imagenet needs one for each class, such as n01440764")
    skipped: list[str] = []
    training = list_classes(train, wnids, wnids, skipped)
    present = folders_in(val)
    if present:
        refuse_strangers(val, present, train, wnids)
        test = list_classes(val, present, wnids, skipped)
    else:
        test = _list_numbered(root, val, wnids, skipped)
    warn_of_skipped(root, skipped)
    words = _words(root)
    return training, test, tuple(words.get(wnid, wnid) for wnid in wnids)


def _list_numbered(root: Path, val: Path, wnids: list[str], skipped: list[str]) -> Listing:
    """Images whose class stands in another file."""
    paths = images_below(val, skipped)
    if not paths:
        raise UsageError(f"no images found in {val}: it needs ILSVRC2012_val_*.JPEG, or a folder for each class")
    truth = _ground_truth(root)
    classes = []
    for path in paths:
        number = _NUMBERED.match(Path(path).stem)
        if number is None or int(number[1]) not in truth:
            raise UsageError(f"the ground truth of imagenet does not tell the class of {path}: remove it")
        classes.append(truth[int(number[1])])
    refuse_strangers(val, sorted(set(classes)), root / "train", wnids)
    label = {wnid: number for number, wnid in enumerate(wnids)}
    return Listing(paths, [label[wnid] for wnid in classes])


def _ground_truth(root: Path) -> dict[int, str]:
    """The class of each numbered image."""
    table = _find(root, _TABLE)
    if table is not None:
        return dict(_read_table(table))
    truth, meta = (_find(root, name) for name in _DEVKIT)
    if truth is None or meta is None:
        raise UsageError(
            f"{root / 'val'} holds images without folders, but their ground truth is missing in "
            f"data.root={root.resolve()}: put {' and '.join(_DEVKIT)} of the development kit there, or {_TABLE}, or "
            "sort the images into a folder for each class"
        )
    wnid_of = {number: wnid for number, wnid, _ in _read_meta(meta)}
    found = {}
    for line, text in enumerate(_lines(truth), start=1):
        if not text.isdecimal() or int(text) not in wnid_of:
            raise UsageError(f"{truth}, line {line}: expected the number of a class in {meta}, got {text!r}")
        found[line] = wnid_of[int(text)]
    return found


def _read_table(path: Path) -> Iterator[tuple[int, str]]:
    """Lines such as `ILSVRC2012_val_00000001,n01751748 111 108 379 255`."""
    for line, row in enumerate(csv.reader(_lines(path)), start=1):
        number = _NUMBERED.match(row[0])
        if number is not None and len(row) > 1 and row[1].split():
            yield int(number[1]), row[1].split()[0]
        elif line > 1:  # the first one is the head of the table
            raise UsageError(f"{path}, line {line}: expected an image and its class, got {','.join(row)!r}")


def _read_meta(path: Path) -> list[tuple[int, str, str]]:
    """Number, WordNet number and words of each class of the development kit."""
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return [(int(each["ILSVRC2012_ID"]), str(each["WNID"]), str(each["words"])) for each in synsets]
    except Exception as error:  # a damaged file raises errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{path} cannot be read as the development kit's ({reason}): restore it") from error


def _words(root: Path) -> dict[str, str]:
    """Names of classes, where a file tells them."""
    mapping, meta = _find(root, _WORDS), _find(root, _DEVKIT[1])
    if mapping is not None:
        return dict(line.split(" ", 1) for line in _lines(mapping) if " " in line)
    return {} if meta is None else {wnid: words for _, wnid, words in _read_meta(meta)}


def _find(root: Path, name: str) -> Path | None:
    return next((path for folder in _FOLDERS if (path := root / folder / name).is_file()), None)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise unreadable(error) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text ({error}): restore it") from error


IMAGENET = Source("imagenet", _load, {"root": "data", "image_size": 224, "workers": 4})
