"""The shape, classes and normalisation of the images that a network was trained on, to prepare other images for it."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:  # who reads a run needs none of the libraries that read datasets
    from sidpar.data.dataset import Dataset


@dataclass(frozen=True)
class Preprocessing:
    """Shape, classes and normalisation of the images of a training set; saved with the weights."""

    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    class_names: tuple[str, ...]
    """One for each of the C classes, in the order of the labels."""
    white: int
    """The largest value that a pixel may have: 255, for digits 16."""
    mean: tuple[float, ...]
    """The mean of each channel of the training images, in values 0..white."""
    deviation: tuple[float, ...]
    """The standard deviation of each channel, in values 0..white."""

    @classmethod
    def of(cls, dataset: "Dataset") -> Self:
        """The preprocessing of a dataset, from its training images."""
        mean, deviation = (tuple(t.flatten().tolist()) for t in dataset.statistics)
        return cls(dataset.image_shape, dataset.class_names, dataset.white, mean, deviation)

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.class_names)

    def statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [channels, 1, 1] in fp32."""
        mean, deviation = (
            torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None]
            for numbers in (self.mean, self.deviation)
        )
        return mean, deviation

    def normalise(self, images: Tensor) -> Tensor:
        """Images [B, channels, H, W] with values 0..white to inputs of the network: normalised, in fp32."""
        mean, deviation = self.statistics(images.device)
        return ((images.float() - mean) / deviation).contiguous()

    def to_json(self) -> str:
        """One line, which `from_json` reads back exactly."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` has written."""
        content: dict[str, Any] = json.loads(text)
        for key, value in content.items():
            content[key] = tuple(value) if isinstance(value, list) else value
        return cls(**content)
