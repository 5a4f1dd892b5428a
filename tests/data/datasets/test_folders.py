"""Datasets from folders: which files, in which order, under which names; and what may be wrong with a folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sidpar.data.augment import crop_padding
from sidpar.data.dataset import Dataset
from sidpar.data.datasets import load
from sidpar.data.datasets.image_folder import list_image_folder
from sidpar.data.splits import Images
from sidpar.errors import UsageError
from tests.data.image_files import digits_folder


def tiny_folder(root: Path) -> Path:
    """The official layout in small: 2 classes, of 3 training images and 1 or 2 test images; words for one of them."""
    base = root / "tiny-imagenet-200"
    for number, wnid in enumerate(("n02", "n01")):
        folder = base / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for k in range(3):
            Image.new("L" if k == 1 else "RGB", (64, 64), 50 * number + k).save(folder / f"{wnid}_{k}.JPEG")
    (base / "val" / "images").mkdir(parents=True)
    for k in range(3):
        Image.new("RGB", (64, 64), (200 + k,) * 3).save(base / "val" / "images" / f"val_{k}.JPEG")
    notes = "".join(f"val_{k}.JPEG\t{wnid}\t0\t0\t63\t63\n" for k, wnid in enumerate(("n01", "n02", "n01")))
    (base / "val" / "val_annotations.txt").write_text(notes)
    (base / "wnids.txt").write_text("n02\nn01\n")
    (base / "words.txt").write_text("n00\tentity\nn01\tlemon, fruit\n")
    return base


@pytest.mark.processes
def test_the_real_tiny_imagenet(tiny_imagenet: Path) -> None:
    """25 of its classes, as published, many JPEGs among them grey."""
    dataset = load("tiny_imagenet", str(tiny_imagenet))
    assert (len(dataset.train), len(dataset.test), dataset.num_classes) == (12_500, 1_250, 25)
    assert dataset.image_shape == (3, 64, 64)
    assert dataset.flips
    assert crop_padding(64) == 8, "the paper's"
    for split, each in ((dataset.train, 500), (dataset.test, 50)):
        assert torch.bincount(split.labels).tolist() == [each] * 25
    mean, deviation = (numbers.flatten() / 255 for numbers in dataset.statistics)
    assert mean.tolist() == pytest.approx([0.4802, 0.4481, 0.3975], abs=0.03), "near that of all 200 classes"
    assert deviation.tolist() == pytest.approx([0.2764, 0.2689, 0.2816], abs=0.03)
    grey = (dataset.train.images[:, 0] == dataset.train.images[:, 2]).flatten(1).all(1).sum()
    assert 50 < grey < 1000


def test_tiny_imagenet_layout(tmp_path: Path) -> None:
    """Labels in the order of wnids.txt, names from words.txt; `root` may be the folder itself."""
    base = tiny_folder(tmp_path)
    for root in (tmp_path, base):
        dataset = load("tiny_imagenet", str(root))
        assert dataset.class_names == ("n02", "lemon, fruit")
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert dataset.test.labels.tolist() == [1, 0, 1]
        assert (dataset.test.images[:, 0, 0, 0] - 200).abs().max() <= 2, "in the order of val_annotations.txt"


def test_a_shorter_wnids_is_a_subset(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path)
    shutil.copytree(base / "train" / "n01", base / "train" / "n03")
    (base / "wnids.txt").write_text("n03\nn01\n")
    dataset = load("tiny_imagenet", str(tmp_path))
    assert dataset.class_names == ("n03", "lemon, fruit")
    assert len(dataset.train) == 6
    assert dataset.test.labels.tolist() == [1, 1], "test images of other classes are left out"


def remove(path: str) -> Callable[[Path], None]:
    """A step of what goes wrong."""
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def write(path: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / path).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("wnids.txt"), "tiny_imagenet is not in its official layout: .*wnids.txt cannot be read .*No such file"),
        (write("wnids.txt", "\n"), "wnids.txt is empty: restore it"),
        (write("wnids.txt", "n01\n"), r"the dataset has 1 classes \(lemon, fruit\): give it at least 2"),
        (remove("train/n01"), "wnids.txt lists the class n01, but no images were found in .*n01/images: restore them"),
        (remove("val/val_annotations.txt"), "val_annotations.txt cannot be read .*; set data.root to the folder that"),
        (write("val/val_annotations.txt", "x\tn09\t0\n"), "lists no image of the 2 classes in wnids.txt"),
        (write("val/val_annotations.txt", "\nval_0.JPEG n01\n"), "txt, line 1: expected a file, a tab and its class"),
        (remove("val/images/val_1.JPEG"), "val_1.JPEG cannot be read as an image .*No such file"),
        (write("train/n01/images/n01_2.JPEG", "?"), "n01_2.JPEG cannot be read as an image .*repair or remove it"),
        (
            lambda root: Image.new("RGB", (64, 32)).save(root / "train/n02/images/n02_0.JPEG"),
            "n02_0.JPEG has 64 x 32 pixels, but these images must have 64 x 64: resize or replace it",
        ),
    ],
)
def test_tiny_imagenet_messages(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    spoil(tiny_folder(tmp_path))
    with pytest.raises(ValueError, match=message):
        load("tiny_imagenet", str(tmp_path))


def test_image_folder_layout(tmp_path: Path) -> None:
    """Classes and files in the order of their names, folders within folders, other files left out, val or test."""
    root = digits_folder(tmp_path)
    deeper = root / "train" / "digit 1" / "more"
    deeper.mkdir()
    shutil.move(root / "train" / "digit 1" / "000.png", deeper / "000.PNG")
    (root / "train" / "digit 1" / "notes.txt").write_text("by hand")
    (root / "train" / ".cache").mkdir()
    shutil.rmtree(root / "val" / "digit 2")
    dataset = load("image_folder", str(root), image_size=16)
    assert dataset.class_names == ("digit 0", "digit 1", "digit 2", "digit 3")
    assert dataset.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12 + [3] * 12
    assert dataset.test.labels.tolist() == [0] * 4 + [1] * 4 + [3] * 4, "a class may have no test images"
    assert dataset.image_shape == (3, 16, 16)
    (images, _), *_ = dataset.train.batches(torch.tensor([23]), 1)
    moved = torch.from_numpy(np.array(Image.open(deeper / "000.PNG")))
    assert torch.equal(images[0, 0], moved), "files of folders come after those that lie beside them"
    (root / "val").rename(root / "test")
    assert dataset.traits() == load("image_folder", str(root), image_size=16).traits()


def test_links_that_lead_around_do_not_repeat_images(tmp_path: Path) -> None:
    """To the folder that they lie in, and to one beside them, which is listed under the first of its names."""
    root = digits_folder(tmp_path)
    expected = load("image_folder", str(root), image_size=16)
    (root / "train" / "digit 0" / "loop").symlink_to(".")
    more = root / "train" / "digit 1" / "more"
    more.mkdir()
    shutil.move(root / "train" / "digit 1" / "011.png", more)
    (root / "train" / "digit 1" / "again").symlink_to("more")
    dataset = load("image_folder", str(root), image_size=16)
    assert dataset.traits() == expected.traits()
    assert [Path(path).parent.name for path in list_image_folder(root)[0].paths if "011" in path][1] == "again"


@pytest.mark.parametrize("unreadable", ["train", "train/digit 1", "train/digit 1/more"])
def test_a_folder_that_cannot_be_read_is_named(
    unreadable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind root, for whom they are played."""
    root = digits_folder(tmp_path)
    (root / "train" / "digit 1" / "more").mkdir()

    def permitted(what: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def ask(path: Any) -> Any:
            if Path(path) == root / unreadable:
                raise PermissionError(13, "Permission denied", str(path))
            return what(path)

        return ask

    monkeypatch.setattr(os, "scandir", permitted(os.scandir))
    monkeypatch.setattr(os, "listdir", permitted(os.listdir))
    with pytest.raises(UsageError, match=rf"folder .*/{unreadable} cannot be read \(Permission denied\): make it"):
        load("image_folder", str(root))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("train"), "data.root=.* has no folder train: image_folder needs train/<class>/... and val/<class>/..."),
        (remove("val"), r"data.root=.* has no folder val \(or valid, validation, test\): image_folder"),
        (lambda root: [shutil.rmtree(f) for f in (root / "train").iterdir()], "train has no folders: .* one for each"),
        (lambda root: [shutil.rmtree(f) for f in (root / "val").iterdir()], "no images found in .*val: it needs a"),
        (
            remove("train/digit 2"),
            r"val has 1 classes that are not in .*train \(digit 2\): add their training images",
        ),
        (lambda root: (root / "train" / "empty").mkdir(), r"no images found in .*train/empty \(files that end in .jpg"),
        (
            remove("val/digit 0/002.png"),
            r"no images found in .*val/digit 0 \(files that end in .*: add some, or remove",
        ),
    ],
)
def test_image_folder_messages(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = digits_folder(tmp_path, train=2, val=1)
    spoil(root)
    with pytest.raises(ValueError, match=message):
        load("image_folder", str(root))


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_the_test_images_may_lie_under_other_names(name: str, tmp_path: Path) -> None:
    root = digits_folder(tmp_path)
    expected = load("image_folder", str(root), image_size=16).traits()
    (root / "val").rename(root / name)
    assert load("image_folder", str(root), image_size=16).traits() == expected


def test_leftovers_are_no_part_of_a_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of archives, file managers and storage systems; what looks like an image among them is counted."""
    root = digits_folder(tmp_path)
    expected = load("image_folder", str(root), image_size=16).traits()
    for folder in (root / "train", root / "val", root / "train" / "digit 1"):
        for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
            (folder / name).mkdir()
            (folder / name / "a.jpg").write_bytes(b"")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.jpg", "photo.heic"):
        for folder in (root / "train" / "digit 1", root / "val" / "digit 2"):
            (folder / name).write_bytes(b"")
    assert load("image_folder", str(root), image_size=16).traits() == expected
    assert [record.getMessage() for record in caplog.records] == [
        f"4 files in {root} are skipped, because they are hidden files or images in a format that "
        f"is not supported, such as {root / 'train' / 'digit 1' / '._000.jpg'}"
    ]


def test_jfif_files_are_images(tmp_path: Path) -> None:
    root = digits_folder(tmp_path)
    count = len(list_image_folder(root)[0].paths)
    image = next((root / "train" / "digit 1").iterdir())
    Image.open(image).convert("RGB").save(image.with_suffix(".jfif"), "jpeg")
    assert len(list_image_folder(root)[0].paths) == count + 1
    load("image_folder", str(root), image_size=16).train.first(count + 1)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the dataset has 1 classes \(digit 0\): give it at least 2"):
        load("image_folder", str(digits_folder(tmp_path, classes=1)))


def test_a_dataset_of_ones_own_is_checked() -> None:
    def images(count: int, size: int = 4) -> Images:
        return Images(torch.zeros(count, 1, size, size, dtype=torch.uint8), torch.arange(count) % 2)

    with pytest.raises(ValueError, match="the dataset has no test images: add some"):
        Dataset(images(2), images(0), ("a", "b"), flips=True)
    with pytest.raises(ValueError, match="the training images are 1 x 4 x 4, but the test images 1 x 5 x 5"):
        Dataset(images(2), images(2, 5), ("a", "b"), flips=True)
    with pytest.raises(ValueError, match=r"3 images need as many labels in int64, got torch.int64 \[2\]"):
        Images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, channels, H, W\], got torch.float32 \[3, 4, 4\]"):
        Images(torch.zeros(3, 4, 4), torch.zeros(3, dtype=torch.int64))
