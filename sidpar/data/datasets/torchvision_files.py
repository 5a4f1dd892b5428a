"""Datasets that torchvision reads and downloads, each in memory."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets as vision

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.splits import Images
from sidpar.errors import UsageError


def _load(name: str, kind: Any, root: Path, download: bool = False) -> Dataset:
    try:
        train, test = (kind(root, train=part, download=download) for part in (True, False))
        train_images, test_images = _images(train), _images(test)
    except RuntimeError as error:
        raise UsageError(
            f"{name} is not in torchvision's layout under data.root={root.resolve()} ({str(error).splitlines()[0]}): "
            "set data.root to the folder that holds it, or data.download=true"
        ) from error
    except Exception as error:  # damaged files have the right names, and raise errors of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"the files of {name} under data.root={root.resolve()} cannot be read ({reason}): they are damaged; "
            "restore them, or remove them and set data.download=true"
        ) from error
    return Dataset(train_images, test_images, class_names=tuple(train.classes), flips=True)


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


def _source(name: str, kind: Any) -> Source:
    return Source(name, partial(_load, name, kind), {"root": "data", "download": False})


FASHION_MNIST = _source("fashion_mnist", vision.FashionMNIST)
CIFAR10 = _source("cifar10", vision.CIFAR10)
CIFAR100 = _source("cifar100", _CIFAR100)
