"""The training or test images of a dataset: in memory, or in files."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from sidpar.data.augment import count_values, to_device
from sidpar.data.reader import Reader
from sidpar.errors import UsageError

STATISTICS_SAMPLE = 2048
"""This many files give the mean of a channel to about 0.3 % of its range."""


class Split(Protocol):
    """Training or test images with labels, on a device."""

    @property
    def labels(self) -> Tensor:
        """[N] in int64."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self: ...

    def with_labels(self, labels: Tensor) -> Self:
        """The same images with other labels [N]."""

    def first(self, count: int) -> Tensor:
        """The first images, at most `count`, in uint8."""

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of `order`, a CPU tensor, batch by batch: images [B, channels, H, W] in uint8, labels [B]."""

    def count_values(self) -> Tensor:
        """How often each value 0..255 occurs in each channel, [channels, 256]: of all images, or of many."""


@dataclass(frozen=True)
class Images:
    """Images [N, channels, H, W] in uint8 that lie in memory, labels [N] in int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise UsageError(
                f"images must be uint8 [N, channels, H, W], got {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise UsageError(
                f"{len(self.images)} images need as many labels in int64, got {self.labels.dtype} "
                f"{list(self.labels.shape)}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))

    def with_labels(self, labels: Tensor) -> "Images":
        return replace(self, labels=labels)

    def first(self, count: int) -> Tensor:
        return self.images[:count]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in _cut(to_device(order, self.labels.device), batch_size):
            yield self.images[rows], self.labels[rows]

    def count_values(self) -> Tensor:
        return count_values(self.images)


@dataclass(frozen=True)
class Files:
    """Images that stay in files and are read batch by batch; labels [N] in int64."""

    reader: Reader
    labels: Tensor
    device: torch.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.reader.size, self.reader.size

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Files":
        return replace(self, device=device)

    def with_labels(self, labels: Tensor) -> "Files":
        return replace(self, labels=labels)

    def first(self, count: int) -> Tensor:
        return self.reader.read(list(range(len(self)))[:count]).to(self.device)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = _cut(order, batch_size)
        images = self.reader.batches([rows.tolist() for rows in batches])
        for rows, x in zip(batches, images, strict=True):
            yield to_device(x, self.device), to_device(self.labels[rows], self.device)

    def count_values(self) -> Tensor:
        """Of all images, or of STATISTICS_SAMPLE at equal distances, so that all classes are represented."""
        count = min(len(self), STATISTICS_SAMPLE)
        rows = torch.arange(count) * len(self) // count
        return torch.stack([count_values(images) for images, _ in self.batches(rows, 64)]).sum(0)


def _cut(order: Tensor, batch_size: int) -> list[Tensor]:
    """Its batches; no batch of an empty order, where `torch.split` gives an empty one."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
