"""Batches of one epoch. Order and augmentation depend on (seed, epoch, step) alone, not on the number of ranks."""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from typing import Self

import torch
from torch import Tensor

from sidpar.data.augment import random_crop, random_flip
from sidpar.data.dataset import Dataset
from sidpar.data.input_rows import InputRows, Inputs, RowsNeeded, all_rows
from sidpar.data.preprocessing import Preprocessing
from sidpar.seeding import generator


class Loader:
    """Every rank makes the same batches, of images in memory or in files, and augments them on its device: all of their
    rows, or `only` those that it needs.

    Args:
        batch_size: B; the last batch of an epoch is smaller where B does not divide the dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        eval_batch_size: int,
        augment: bool,
        seed: int,
        device: torch.device,
    ) -> None:
        self.preprocessing = Preprocessing.of(dataset)
        self.traits = dataset.traits()
        self._mean, self._deviation = self.preprocessing.statistics(device)
        self._train, self._test = dataset.train.to(device), dataset.test.to(device)
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size
        self._augment, self._flips, self._crops = augment, dataset.flips, dataset.crops
        self._seed = seed
        self._rows_needed: RowsNeeded = all_rows

    @property
    def sample(self) -> Tensor:
        """A few training images, [n, channels, H, W] in fp32, normalised as in training."""
        return self._normalise(self._train.first(4))

    @property
    def num_images(self) -> int:
        """The number of training images."""
        return len(self._train)

    @property
    def num_test_images(self) -> int:
        """Of the test set."""
        return len(self._test)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self._train) / self._batch_size)

    def only(self, rows_needed: RowsNeeded) -> Self:
        """The same batches, of whose inputs only those rows are read, augmented and moved that a rank needs."""
        loader = copy(self)
        loader._rows_needed = rows_needed
        return loader

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Inputs, Tensor]]:
        """(x [B, channels, H, W] in fp32, y [B]) of every step of an epoch from `start` on, in the epoch's order."""
        order = torch.randperm(len(self._train), generator=generator(self._seed, "order", epoch))
        needed = partial(self._rows_needed, training=True)
        crops = partial(self._crop_seeds, epoch, start) if self._augment and self._crops == "resized" else None
        batches = self._train.batches(order[start * self._batch_size :], self._batch_size, needed, crops)
        for step, (images, labels) in enumerate(batches, start):
            rows, size = needed(len(labels)), len(labels)
            if self._augment and rows:
                randomness = generator(self._seed, "augmentation", epoch, step)
                if self._crops == "shifted":
                    images = random_crop(images, rows, size, randomness)
                if self._flips:
                    images = random_flip(images, rows, size, randomness)
            yield self._inputs(images, rows, size), labels

    def test_batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        """The test set in order, without augmentation."""
        needed = partial(self._rows_needed, training=False)
        for images, labels in self._test.batches(torch.arange(len(self._test)), self._eval_batch_size, needed):
            yield self._inputs(images, needed(len(labels)), len(labels)), labels

    def _crop_seeds(self, epoch: int, start: int, batch: int, batch_size: int) -> Tensor:
        """By what the random part of each image of a batch, counted from step `start` on, is drawn: [B]."""
        step = start + batch
        return torch.randint(2**62, (batch_size,), generator=generator(self._seed, "resized crops", epoch, step))

    def _inputs(self, images: Tensor, rows: Sequence[int], batch_size: int) -> Inputs:
        x = self._normalise(images)
        return x if len(rows) == batch_size else InputRows(x, rows, batch_size)

    def _normalise(self, images: Tensor) -> Tensor:
        # One copy, in fp32 and in order at once: new memory for each operation would cost more than the arithmetic.
        x = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return x.sub_(self._mean).div_(self._deviation)
