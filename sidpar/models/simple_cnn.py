"""The paper's SimpleCNN (appendix B.1.2, table 2)."""

from torch import nn


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
