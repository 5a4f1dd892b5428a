"""Where a hidden activation has its channels, and where its positions: images [B, C, H, W] or [B, H, W, C], tokens
[B, T, D], vectors [B, D]."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sidpar.config.groups.choices import HiddenLayout
from sidpar.errors import UsageError

_MOST_PREFIX = 8
"""Tokens before those of an image: a class token, and registers."""


@dataclass(frozen=True)
class Hidden:
    """A hidden activation, without the batch."""

    shape: tuple[int, ...]
    channels_last: bool
    image: tuple[int, int] | None
    """Height and width of what entered the network; None where that was no image."""

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.channels_last else self.shape[0]

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of all dimensions but the channels."""
        return self.shape[:-1] if self.channels_last else self.shape[1:]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Height and width of its image, which tokens [B, T, D] form too, of an image's proportions; None for vectors
        and for any other number of tokens."""
        if len(self.positions) == 2:
            return self.positions[0], self.positions[1]
        if len(self.positions) == 1 and self.image is not None:
            common = math.gcd(*self.image)
            height, width = (side // common for side in self.image)
            scale = math.isqrt(self.positions[0] // (height * width))
            if scale > 0 and self.positions[0] - scale**2 * height * width <= _MOST_PREFIX:
                return scale * height, scale * width
        return None

    def __str__(self) -> str:
        return f"[B, {', '.join(map(str, self.shape))}]"


def find_layout(
    shape: tuple[int, ...],
    image: tuple[int, int] | None,
    given: HiddenLayout | None,
    read: Callable[[], bool | None],
) -> Hidden:
    """The layout of an activation of this shape, batch left out: as given, by its proportions, or by who reads it.

    Args:
        image: height and width of what entered the network.
        read: tells as `is_read_last` does.

    Raises UsageError where nothing tells.
    """
    if len(shape) < 3 or given is not None:
        return Hidden(shape, given != "channels_first" or len(shape) == 1, image)
    last = _by_proportions(shape, image) if image is not None else None
    last = read() if last is None else last
    if last is None:
        raise UsageError(
            f"a hidden activation is [B, {', '.join(map(str, shape))}], and neither its proportions nor the layers "
            "behind it tell where its channels are: say it, layout=channels_first or channels_last"
        )
    return Hidden(shape, last, image)


def is_read_last(forward: Callable[[], object], layers: nn.Module) -> bool | None:
    """Whether the first of these layers to read an image in a forward reads its channels last; None if none does."""
    found: list[bool] = []

    def look(module: nn.Module, given: tuple[object, ...]) -> None:
        if given and isinstance(given[0], Tensor) and given[0].dim() == 4:
            if isinstance(module, _ConvNd | _BatchNorm):
                found.append(False)
            elif isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:  # others move the channels themselves
                found.append(True)

    hooks = [module.register_forward_pre_hook(look) for module in layers.modules()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _by_proportions(shape: tuple[int, ...], image: tuple[int, int]) -> bool | None:
    """Whether the first two of [C, H, W] or [H, W, C] are an image's; None if both pairs may be, or none."""
    if len(shape) != 3:
        return None
    # Sides are halved with rounding, so proportions are kept to one position.
    first, last = (abs(h - w * image[0] / image[1]) < 1 for h, w in (shape[1:], shape[:2]))
    return None if first == last else last


class Mean(nn.Module):
    """The mean over positions, [B, C]."""

    def __init__(self, hidden: Hidden) -> None:
        super().__init__()
        first = 1 if hidden.channels_last else 2
        self._dims = tuple(range(first, first + len(hidden.positions)))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self._dims) if self._dims else x


class ClassToken(nn.Module):
    """The first of tokens [B, T, D], [B, D]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class ToImage(nn.Module):
    """An activation with a grid to [B, C, H, W]; tokens before those of the image are left out."""

    def __init__(self, hidden: Hidden) -> None:
        super().__init__()
        assert hidden.grid is not None
        self._grid, self._channels_last = hidden.grid, hidden.channels_last
        self._are_tokens = len(hidden.positions) == 1

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1) if self._channels_last else x
        if self._are_tokens:
            height, width = self._grid
            x = x[:, :, -height * width :].reshape(len(x), -1, height, width)
        return x
