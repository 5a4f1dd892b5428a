"""The paper's SimpleCNN (appendix B.1.2, table 2)."""

from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble
from sidpar.models.base import Model
from sidpar.models.concat_refiner import ConcatRefiner


def simple_cnn_extractor(channels: int, feature_width: int = 128) -> nn.Sequential:
    """Four convolutions, two poolings, one linear layer: images [B, channels, H, W], H, W >= 4, to [B, 128]."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, feature_width),
    )


def simple_cnn(image_shape: tuple[int, int, int], num_classes: int, num_refiners: int, *, seed: int = 0) -> Cascade:
    """The paper's SimpleCNN with L = `num_refiners`, for images [channels, H, W]."""
    return assemble(
        lambda: simple_cnn_extractor(image_shape[0]),
        lambda: ConcatRefiner(128, [256], num_classes),
        num_classes,
        num_refiners,
        seed,
    )


SIMPLE_CNN = Model("simple_cnn", simple_cnn)
