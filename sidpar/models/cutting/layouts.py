"""Where a hidden activation has its channels, and where its positions: images [B, C, H, W] or [B, H, W, C], tokens
[B, T, D], vectors [B, D]."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

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


def find_layout(shape: tuple[int, ...], image: tuple[int, int] | None, given: HiddenLayout | None) -> Hidden:
    """The layout of an activation of this shape, batch left out, by its proportions if it is not given.

    Raises UsageError where both layouts of an image are possible, or none.
    """
    if len(shape) < 3 or given is not None:
        return Hidden(shape, given != "channels_first" or len(shape) == 1, image)
    fitting = []
    if len(shape) == 3 and image is not None:
        sides = {False: (shape[1], shape[2]), True: (shape[0], shape[1])}
        # A side is halved with rounding, so proportions are kept to one position.
        fitting = [last for last, (h, w) in sides.items() if abs(h - w * image[0] / image[1]) < 1]
    if len(fitting) != 1:
        images = "inputs that are no images" if image is None else f"images of {image[0]}x{image[1]}"
        raise UsageError(
            f"a hidden activation is [B, {', '.join(map(str, shape))}], which does not tell where its channels are, of "
            f"{images}: say it, layout=channels_first or channels_last"
        )
    return Hidden(shape, fitting[0], image)


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
