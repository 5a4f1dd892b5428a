"""scikit-learn's handwritten digits, which are embedded."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.splits import Images


def _load() -> Dataset:
    """1,797 images of 8x8, values 0..16; a fixed fifth of each class is the test set."""
    bunch = load_digits()
    split = train_test_split(bunch.images, bunch.target, test_size=0.2, random_state=0, stratify=bunch.target)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in split)

    def images(x: Tensor, y: Tensor) -> Images:
        return Images(x.to(torch.uint8).unsqueeze(1), y.long())

    names = tuple(str(digit) for digit in range(10))
    return Dataset(images(train_x, train_y), images(test_x, test_y), names, flips=False, white=16)


DIGITS = Source("digits", _load)
