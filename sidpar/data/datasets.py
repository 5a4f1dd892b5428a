"""The datasets, each a pair of uint8 image tensors with labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision import datasets as vision

from sidpar.choices import DatasetName
from sidpar.errors import UsageError


@dataclass(frozen=True)
class Images:
    """Images [N, channels, H, W] in uint8, labels [N] in int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    """In the order of the labels."""
    flips: bool
    """Whether a mirrored image keeps its label."""
    white: int = 255
    """The largest value that a pixel may have."""

    def __post_init__(self) -> None:
        for name, split in (("training", self.train), ("test", self.test)):
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise UsageError(
                    f"the {name} labels span {low}..{high}, but the dataset has {self.num_classes} classes"
                )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load(name: DatasetName, root: str | None = None, *, download: bool = False) -> Dataset:
    """A dataset by name. Raises UsageError if torchvision's layout is not found under `root`."""
    if name == "digits":
        return _digits()
    if name not in get_args(DatasetName):
        raise UsageError(f"dataset {name!r} is unknown; choose one of {get_args(DatasetName)}")
    folder = Path(root or "data")
    kind = {"fashion_mnist": vision.FashionMNIST, "cifar10": vision.CIFAR10, "cifar100": _CIFAR100}[name]
    try:
        train, test = (kind(folder, train=part, download=download) for part in (True, False))
    except RuntimeError as error:
        raise UsageError(
            f"{name} is not in torchvision's layout under data.root={folder.resolve()} ({str(error).splitlines()[0]}): "
            "set data.root to the folder that holds it, or data.download=true"
        ) from error
    return Dataset(_images(train), _images(test), class_names=tuple(train.classes), flips=True)


def _digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8, values 0..16; a fixed fifth of each class is the test set."""
    bunch = load_digits()
    split = train_test_split(bunch.images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in split)

    def images(x: Tensor, y: Tensor) -> Images:
        return Images(x.to(torch.uint8).unsqueeze(1), y.long())

    names = tuple(str(digit) for digit in range(10))
    return Dataset(images(train_x, train_y), images(test_x, test_y), names, flips=False, white=16)


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
