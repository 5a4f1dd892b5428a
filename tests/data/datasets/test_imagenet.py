"""ImageNet's layout with real images: some classes of Tiny-ImageNet in the folders in which ImageNet is published."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from sidpar.data.dataset import Dataset
from sidpar.data.datasets import load
from sidpar.data.datasets.imagenet import DEVIATION, MEAN, SHARE
from sidpar.data.image_file import read_image
from sidpar.data.loader import Loader
from sidpar.data.preprocessing import Preprocessing
from sidpar.errors import UsageError

KIT = "ILSVRC2012_devkit_t12/data"
TRUTH = f"{KIT}/ILSVRC2012_validation_ground_truth.txt"


def imagenet_folder(official: Path, root: Path, classes: int = 3, train: int = 6) -> Path:
    """train/<wnid>/*.JPEG, val/ILSVRC2012_val_*.JPEG as they come out of the archive, and the development kit, whose
    numbers of classes are not in the order of their names; two test images of each class."""
    wnids = (official / "wnids.txt").read_text().split()[:classes]
    for wnid in wnids:
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for path in sorted((official / "train" / wnid / "images").iterdir())[:train]:
            (folder / path.name).symlink_to(path)
    notes = [line.split("\t")[:2] for line in (official / "val" / "val_annotations.txt").read_text().splitlines()]
    named = {wnid: [name for name, own in notes if own == wnid] for wnid in wnids}
    chosen = [(named[wnid][k], wnid) for k in range(2) for wnid in wnids]
    (root / "val").mkdir()
    (root / KIT).mkdir(parents=True)
    numbers = {wnid: classes - k for k, wnid in enumerate(sorted(wnids))}
    for k, (name, _) in enumerate(chosen, start=1):
        (root / "val" / f"ILSVRC2012_val_{k:08}.JPEG").symlink_to(official / "val" / "images" / name)
    (root / TRUTH).write_text("".join(f"{numbers[wnid]}\n" for _, wnid in chosen))
    synsets = np.zeros(classes, dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for k, wnid in enumerate(wnids):
        synsets[k] = (numbers[wnid], wnid, f"word {wnid}, second")
    savemat(root / KIT / "meta.mat", {"synsets": synsets})
    return root


@pytest.fixture
def root(tiny_imagenet: Path, tmp_path: Path) -> Path:
    return imagenet_folder(tiny_imagenet, tmp_path / "imagenet")


def as_table(root: Path) -> None:
    """The ground truth as the later competition gives it, and words likewise."""
    dataset = load("imagenet", str(root))
    wnids = sorted(path.name for path in (root / "train").iterdir())
    names = sorted(path.stem for path in (root / "val").iterdir())
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        rows = [(name, f"{wnids[label]} 1 2 3 4") for name, label in zip(names, dataset.test.labels, strict=True)]
        csv.writer(file).writerows([("ImageId", "PredictionString"), *reversed(rows)])
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} word {wnid}, second\n" for wnid in wnids))
    shutil.rmtree(root / "ILSVRC2012_devkit_t12")


def in_folders(root: Path) -> None:
    dataset = load("imagenet", str(root))
    wnids = sorted(path.name for path in (root / "train").iterdir())
    for path, label in zip(sorted((root / "val").iterdir()), dataset.test.labels, strict=True):
        (root / "val" / wnids[label]).mkdir(exist_ok=True)
        path.rename(root / "val" / wnids[label] / path.name)


@pytest.mark.processes
def test_layouts(root: Path) -> None:
    """By the development kit, by the table, and sorted into folders: the same images have the same labels."""
    dataset = load("imagenet", str(root), image_size=32)
    wnids = sorted(path.name for path in (root / "train").iterdir())
    assert dataset.class_names == tuple(f"word {wnid}, second" for wnid in wnids)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert torch.bincount(dataset.test.labels).tolist() == [2, 2, 2]
    assert dataset.image_shape == (3, 32, 32)
    as_table(root)
    assert load("imagenet", str(root), image_size=32).traits() == dataset.traits()
    in_folders(root)
    (root / "LOC_val_solution.csv").unlink()
    sorted_ = load("imagenet", str(root), image_size=32)
    assert sorted_.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    (root / "LOC_synset_mapping.txt").unlink()
    assert load("imagenet", str(root)).class_names == tuple(wnids)
    assert load("imagenet", str(root)).image_shape == (3, 224, 224)


def loader(dataset: Dataset, *, augment: bool = True) -> Loader:
    return Loader(dataset, batch_size=5, eval_batch_size=4, augment=augment, seed=1, device=torch.device("cpu"))


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_batches(workers: int, root: Path) -> None:
    """Random parts, drawn row by row: the same with any rows, any number of workers; others in every epoch."""
    dataset = load("imagenet", str(root), image_size=32, workers=workers)
    whole = loader(dataset)
    mean, deviation = dataset.statistics
    assert (mean.flatten() / 255).tolist() == pytest.approx(MEAN)
    assert (deviation.flatten() / 255).tolist() == pytest.approx(DEVIATION)
    batches = list(whole.train_batches(0))
    assert [tuple(x.shape) for x, _ in batches] == [(5, 3, 32, 32)] * 3 + [(3, 3, 32, 32)]
    part = loader(dataset).only(lambda size, *, training: range(1, size, 2))
    for (x, y), (rows, labels) in zip(batches, part.train_batches(0), strict=True):
        assert torch.equal(labels, y)
        assert not isinstance(rows, torch.Tensor)
        assert torch.equal(rows.x, x[1::2])
    later = list(loader(dataset).train_batches(0, start=2))
    assert all(
        torch.equal(a, b)
        for one, other in zip(batches[2:], later, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    plain = torch.cat([x for x, _ in loader(dataset, augment=False).train_batches(0)])
    for other in (torch.cat([x for x, _ in whole.train_batches(1)]), torch.cat([x for x, _ in batches])):
        assert not torch.equal(other, plain)


@pytest.mark.processes
def test_test_images_are_what_predict_sees(root: Path) -> None:
    """The middle 7/8 of an image, there and here."""
    dataset = load("imagenet", str(root), image_size=28)
    seen = Preprocessing.from_json(Preprocessing.of(dataset).to_json())
    assert seen.share == SHARE == 7 / 8
    x = torch.cat([x for x, _ in loader(dataset).test_batches()])
    for path, image in zip(sorted((root / "val").iterdir()), x, strict=True):
        assert torch.equal(seen.normalise(read_image(path, seen)[None])[0], image)
    whole = Preprocessing(seen.image_shape, seen.class_names, seen.white, seen.mean, seen.deviation)
    assert not torch.equal(read_image(path, whole), read_image(path, seen))


def remove(path: str) -> Callable[[Path], Any]:
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def write(path: str, content: bytes) -> Callable[[Path], Any]:
    return lambda root: (root / path).write_bytes(content)


def strange(root: Path) -> None:
    wnid = sorted(path.name for path in (root / "train").iterdir())[0]
    shutil.rmtree(root / "train" / wnid)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            remove("train"),
            "data.root=.* has no folder train, with a folder for each class, train/n01440764/...: imagen",
        ),
        (remove("val"), "data.root=.* has no folder val: imagenet needs train and val"),
        (lambda root: [shutil.rmtree(f) for f in (root / "train").iterdir()], "train has no folders: imagenet needs"),
        (lambda root: [f.unlink() for f in (root / "val").iterdir()], "no images found in .*val: it needs ILSVRC2012_"),
        (
            remove(TRUTH),
            r"val holds images without folders, but their ground truth is missing in data.root=.*: put ILSV",
        ),
        (remove(f"{KIT}/meta.mat"), "their ground truth is missing in data.root=.*, or LOC_val_solution.csv, or sort"),
        (write(f"{KIT}/meta.mat", b"\0"), "meta.mat cannot be read as the development kit's .*: restore it"),
        (
            write(TRUTH, b"1\n1\n"),
            "the ground truth of imagenet does not tell the class of .*val_00000003.JPEG: remove",
        ),
        (write(TRUTH, b"1\n9\n"), r"ground_truth.txt, line 2: expected the number of a class in .*meta.mat, got '9'"),
        (write(TRUTH, b"\xff"), "ground_truth.txt is no text .*: restore it"),
        (write("LOC_val_solution.csv", b"a,b\nc\n"), r"LOC_val_solution.csv, line 2: expected an image and its class"),
        (
            write("val/other.JPEG", b""),
            "the ground truth of imagenet does not tell the class of .*other.JPEG: remove it",
        ),
        (strange, r"val has 1 classes that are not in .*train \(n\d+\): add their training images, or remove them"),
    ],
)
def test_messages(spoil: Callable[[Path], Any], message: str, root: Path) -> None:
    spoil(root)
    with pytest.raises(UsageError, match=message):
        load("imagenet", str(root))
