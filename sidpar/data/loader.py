"""Batches of one epoch. Order and augmentation depend on (seed, epoch, step) alone, not on the number of ranks."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sidpar.data.augment import random_crop, random_flip
from sidpar.data.dataset import Dataset
from sidpar.data.preprocessing import Preprocessing
from sidpar.seeding import generator


class Loader:
    """Every rank makes the same whole batches, of images in memory or in files, and augments them on its device.

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
        self._augment, self._flips = augment, dataset.flips
        self._seed = seed

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

    def train_batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(x [B, channels, H, W] in fp32, y [B]) of every step of an epoch from `start` on, in the epoch's order."""
        order = torch.randperm(len(self._train), generator=generator(self._seed, "order", epoch))
        batches = self._train.batches(order[start * self._batch_size :], self._batch_size)
        for step, (images, labels) in enumerate(batches, start):
            if self._augment:
                randomness = generator(self._seed, "augmentation", epoch, step)
                images = random_crop(images, randomness)
                if self._flips:
                    images = random_flip(images, randomness)
            yield self._normalise(images), labels

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test set in order, without augmentation."""
        for images, labels in self._test.batches(torch.arange(len(self._test)), self._eval_batch_size):
            yield self._normalise(images), labels

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images.float() - self._mean) / self._deviation).contiguous()
