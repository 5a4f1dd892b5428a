"""ResNet-18 (He et al. 2016) for small images: a 3x3 stem without pooling, four stages of two basic blocks."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from sidpar.models.backbones.base import Backbone


class ResNet18(nn.Module):
    """Images [B, channels, H, W] of any size to logits [B, C]. With width 64, 0.56 G multiply-adds at 32x32."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return logits


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    shortcut = None
    if before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
    return nn.Sequential(BasicBlock(before, after, stride, shortcut), BasicBlock(after, after))


RESNET18 = Backbone("resnet18", ResNet18, "fc")
