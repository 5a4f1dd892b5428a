"""VGG-11 (Simonyan and Zisserman 2015) for small images: eight convolutions, five poolings, one linear layer."""

from functools import partial

from torch import Tensor, nn

from sidpar.errors import UsageError
from sidpar.models.backbones.base import Backbone

_LEAST_SIDE = 32
_WIDTHS = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")
"""In units of the first convolution's width; M for a pooling by 2."""


class VGG11(nn.Module):
    """Images [B, channels, H, W], H, W >= 32, to logits [B, C]. With width 64, 0.15 G multiply-adds at 32x32.

    torchvision's classifier of three linear layers is for images of 224x224; here it is the last one alone.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, width: int = 64, batch_norm: bool = False
    ) -> None:
        super().__init__()
        channels, *sides = image_shape
        if min(sides) < _LEAST_SIDE:
            raise UsageError(
                f"it halves images five times, so they must have at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels, but the "
                f"dataset's have {sides[0]}x{sides[1]}: use resnet18, or a dataset with larger ones"
            )
        layers: list[nn.Module] = []
        for units in _WIDTHS:
            if isinstance(units, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, units * width, 3, padding=1))
            channels = units * width
            layers += [nn.BatchNorm2d(channels)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(x))))
        return logits


VGG11_PLAIN = Backbone("vgg11", VGG11, "classifier")
VGG11_BN = Backbone("vgg11_bn", partial(VGG11, batch_norm=True), "classifier")
