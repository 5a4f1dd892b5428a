"""The datasets, each a pair of splits: images in memory, or in files."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets as vision

from sidpar.config.groups.choices import DatasetName
from sidpar.data.augment import statistics
from sidpar.data.decoding import read_images
from sidpar.data.folders import list_image_folder, list_tiny_imagenet
from sidpar.data.label_noise import MovedLabels, move_labels
from sidpar.data.reader import Reader
from sidpar.data.splits import Files, Images, Split
from sidpar.errors import UsageError


@dataclass(frozen=True)
class Dataset:
    """Training and test images."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    """In the order of the labels."""
    flips: bool
    """Whether a mirrored image keeps its label."""
    white: int = 255
    """The largest value that a pixel may have."""
    moved: MovedLabels | None = None
    """The training labels that are noise."""

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UsageError(
                f"the dataset has {self.num_classes} classes ({', '.join(self.class_names)}): give it at least 2"
            )
        for name, split in (("training", self.train), ("test", self.test)):
            if len(split) == 0:
                raise UsageError(f"the dataset has no {name} images: give it some")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise UsageError(
                    f"the {name} labels span {low}..{high}, but the dataset has {self.num_classes} classes"
                )
        if self.train.image_shape != self.test.image_shape:
            raise UsageError(
                f"the training images are {_by(self.train.image_shape)}, but the test images "
                f"{_by(self.test.image_shape)} (channels x height x width): make them alike"
            )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.train.image_shape

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of the training images, each [channels, 1, 1]."""
        return statistics(self.train.count_values())

    def with_label_noise(self, share: float, seed: int) -> "Dataset":
        """The same with a share of the training labels moved, drawn by the seed."""
        labels, moved = move_labels(self.train.labels, self.num_classes, share, seed)
        return replace(self, train=self.train.with_labels(labels), moved=moved)

    def traits(self) -> dict[str, Any]:
        """What must be alike on all ranks: how many there are of everything, and which labels in which order."""
        digest = hashlib.blake2b(repr(self.class_names).encode(), digest_size=8)
        for split in (self.train, self.test):
            digest.update(split.labels.cpu().numpy().tobytes())
        return {
            "classes": self.num_classes,
            "training images": len(self.train),
            "test images": len(self.test),
            "labels (their checksum)": digest.hexdigest(),
        }


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)


def load(
    name: DatasetName,
    root: str | None = None,
    *,
    download: bool = False,
    image_size: int = 64,
    workers: int = 0,
) -> Dataset:
    """A dataset by name, from the folder `root`. Raises UsageError if it is not there in its layout.

    Args:
        download: let torchvision fetch it (fashion_mnist, cifar10, cifar100).
        image_size: image_folder: height and width that images are brought to.
        workers: image_folder: processes that decode.
    """
    folder = Path(root or "data")
    if name == "digits":
        return _digits()
    if name == "tiny_imagenet":
        return _tiny_imagenet(folder)
    if name == "image_folder":
        return _image_folder(folder, image_size, workers)
    if name not in get_args(DatasetName):
        raise UsageError(f"dataset {name!r} is unknown; choose one of {get_args(DatasetName)}")
    return _torchvision(name, folder, download)


def _torchvision(name: DatasetName, folder: Path, download: bool) -> Dataset:
    kind = {"fashion_mnist": vision.FashionMNIST, "cifar10": vision.CIFAR10, "cifar100": _CIFAR100}[name]
    try:
        train, test = (kind(folder, train=part, download=download) for part in (True, False))
        train_images, test_images = _images(train), _images(test)
    except RuntimeError as error:
        raise UsageError(
            f"{name} is not in torchvision's layout under data.root={folder.resolve()} ({str(error).splitlines()[0]}): "
            "set data.root to the folder that holds it, or data.download=true"
        ) from error
    except Exception as error:  # damaged files have the right names, and raise errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"the files of {name} under data.root={folder.resolve()} cannot be read ({reason}): they are damaged; "
            "restore them, or remove them and set data.download=true"
        ) from error
    return Dataset(train_images, test_images, class_names=tuple(train.classes), flips=True)


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, values 0..16; a fixed fifth of each class is the test set."""
    bunch = load_digits()
    split = train_test_split(bunch.images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in split)

    def images(x: Tensor, y: Tensor) -> Images:
        return Images(x.to(torch.uint8).unsqueeze(1), y.long())

    names = tuple(str(digit) for digit in range(10))
    return Dataset(images(train_x, train_y), images(test_x, test_y), names, flips=False, white=16)


def _tiny_imagenet(folder: Path) -> Dataset:
    """In memory: all 110,000 images are 1.3 GB, and take about 20 s to decode."""
    *listings, class_names = list_tiny_imagenet(folder)
    train, test = (Images(read_images(found.paths, 64, exact=True), torch.tensor(found.labels)) for found in listings)
    return Dataset(train, test, class_names, flips=True)


def _image_folder(folder: Path, size: int, workers: int) -> Dataset:
    *listings, class_names = list_image_folder(folder)
    cpu = torch.device("cpu")
    train, test = (Files(Reader(found.paths, size, workers), torch.tensor(found.labels), cpu) for found in listings)
    return Dataset(train, test, class_names, flips=True)


def _images(dataset: Any) -> Images:
    """torchvision's `data` ([N, H, W] or [N, H, W, channels]) and `targets` as tensors."""
    data = torch.as_tensor(dataset.data)
    images = data.unsqueeze(1) if data.dim() == 3 else data.permute(0, 3, 1, 2)
    return Images(images.contiguous(), torch.as_tensor(dataset.targets).long())


class _CIFAR100(vision.CIFAR100):  # type: ignore[misc]
    """Accepts any files of the right names: a lossless re-packing has other checksums. Downloads are still verified,
    by the checksum of the archive."""

    def _check_integrity(self) -> bool:
        folder = Path(self.root) / self.base_folder
        return all((folder / name).is_file() for name, _ in self.train_list + self.test_list)
