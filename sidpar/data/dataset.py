"""A dataset: training and test images, in memory or in files, with their labels."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from sidpar.data.augment import statistics
from sidpar.data.label_noise import MovedLabels, move_labels
from sidpar.data.splits import Split
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
    """The training labels that were changed at random, if any."""

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise UsageError(
                f"the dataset has {self.num_classes} classes ({', '.join(self.class_names)}): give it at least 2"
            )
        for name, split in (("training", self.train), ("test", self.test)):
            if len(split) == 0:
                raise UsageError(f"the dataset has no {name} images: add some")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= self.num_classes:
                raise UsageError(
                    f"the {name} labels lie in {low}..{high}, but with {self.num_classes} classes they must lie in "
                    f"0..{self.num_classes - 1}"
                )
        if self.train.image_shape != self.test.image_shape:
            raise UsageError(
                f"the training images are {_by(self.train.image_shape)}, but the test images "
                f"{_by(self.test.image_shape)} (channels x height x width): give both the same shape"
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
        """The same dataset with a share of the training labels changed to other classes, chosen by the seed."""
        labels, moved = move_labels(self.train.labels, self.num_classes, share, seed)
        return replace(self, train=self.train.with_labels(labels), moved=moved)

    def traits(self) -> dict[str, Any]:
        """What must be the same on all ranks: the numbers of classes and images, and the labels in their order."""
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
