"""From a hidden activation to logits: what a refiner believes, given what was believed before it.

Costs in multiply-adds per image, for C channels on H x W positions and K classes:

| head | what | cost |
| --- | --- | --- |
| linear | mean over positions, linear layer | C K |
| mlp | mean, a hidden layer of C units, linear layer | C (C + K) |
| conv | a 3x3 convolution to C channels, mean, linear layer | 9 C^2 H W + C K |
| strided | 3x3 convolutions of stride 2 to 2 C channels, at most 512, down to 4x4 positions, then the same | below |

A convolution of strided costs 4.5 C^2 H W with the C, H and W that it is given: all of them alike, since C doubles
where H W is quartered, until 512 are reached.
Sides of more than 32 positions are halved by average pooling before the convolutions of conv and strided. These are
followed by batch norm where the network has batch norm, else by a group norm of one group, and by ReLU.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sidpar.config.groups.choices import BeliefEntry, HeadName, Pooling
from sidpar.errors import UsageError
from sidpar.models.cutting.layouts import ClassToken, Hidden, Mean, ToImage

HeadBuilder = Callable[[tuple[int, ...], int], nn.Module]
"""A head of one's own: called with the shape of a hidden activation without the batch, and the number of classes, it
returns a module that maps such activations [B, ...] to logits [B, C]."""

_SIDE = 4
_LARGEST_SIDE = 32
_MOST_CHANNELS = 512


class BeliefHead(nn.Module):
    """Logits from a hidden activation and the log-belief of the refiner before.

    Args:
        body: maps the activation [B, ...] to logits [B, C].
        belief: residual: logits = log p_{i-1} + body; concat: logits = body + W p_{i-1}, which is what concatenating
            the belief to the input of the body's last linear layer gives, with W zero at first; none: the body alone.
    """

    def __init__(self, body: nn.Module, num_classes: int, belief: BeliefEntry) -> None:
        super().__init__()
        self.body = body
        self._adds_belief = belief == "residual"
        self.belief: nn.Linear | None = None
        if belief == "concat":
            self.belief = nn.Linear(num_classes, num_classes, bias=False)
            nn.init.zeros_(self.belief.weight)

    def forward(self, hidden: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.body(hidden)
        if self._adds_belief:
            return logits + log_belief
        return logits if self.belief is None else logits + self.belief(log_belief.exp())


def own_body(head: HeadBuilder, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The body that a user's function makes. Raises UsageError if that is no module."""
    body = head(shape, num_classes)
    if not isinstance(body, nn.Module):
        raise UsageError(f"head returns a {type(body).__name__} for the shape {list(shape)}, but must return a module")
    return body


def make_body(head: HeadName | None, hidden: Hidden, num_classes: int, pool: Pooling, *, batch_norm: bool) -> nn.Module:
    """The body of a head on such an activation: by default strided where it is an image, linear on tokens and vectors.

    Raises UsageError for a head that does not fit.
    """
    if head is None:
        head = "strided" if len(hidden.positions) == 2 else "linear"
    if head in ("linear", "mlp"):
        channels = hidden.channels
        inner = [nn.Linear(channels, channels), nn.ReLU()] if head == "mlp" else []
        return nn.Sequential(_pool(hidden, pool), *inner, nn.Linear(channels, num_classes))
    if hidden.grid is None:
        raise UsageError(
            f"head={head} needs the positions of an image, but a hidden activation is {hidden}: use head=linear or mlp"
        )
    if pool != "mean":
        raise UsageError(
            f"pool={pool} is for head=linear and mlp, and head={head} does not read it: remove one of them"
        )
    return _convolutions(head, hidden, hidden.grid, num_classes, nn.BatchNorm2d if batch_norm else _group_norm)


def has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def _pool(hidden: Hidden, pool: Pooling) -> nn.Module:
    if pool == "mean":
        return Mean(hidden)
    if len(hidden.positions) != 1 or not hidden.channels_last:
        raise UsageError(
            f"pool=class reads the first of tokens [B, T, D], but a hidden activation is {hidden}: use mean"
        )
    return ClassToken()


def _convolutions(
    head: HeadName, hidden: Hidden, grid: tuple[int, int], num_classes: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    layers: list[nn.Module] = [ToImage(hidden)]
    channels, side = hidden.channels, max(grid)
    while side > _LARGEST_SIDE:
        layers.append(nn.AvgPool2d(2, ceil_mode=True))
        side = -(-side // 2)
    if head == "conv":
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels), nn.ReLU()]
    while head == "strided" and side > _SIDE:
        before, channels = channels, min(2 * channels, _MOST_CHANNELS)
        layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False), norm(channels), nn.ReLU()]
        side = -(-side // 2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)
