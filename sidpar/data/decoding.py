"""Image files to pixels: RGB, uint8, all of one size."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sidpar.errors import UsageError

_EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def read_images(paths: Sequence[str], size: int, *, exact: bool = False) -> Tensor:
    """The images in these files, [N, 3, size, size] in uint8: the square in the middle of each, resized.

    In one thread: for small images, several hold each other up.

    Args:
        exact: refuse images of other sizes in place of resizing them.

    Raises UsageError that names a file which is not an image of 8 bits per channel.
    """
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
    for row, path in enumerate(paths):
        pixels = np.array(_read(path, size, exact))
        images[row] = torch.from_numpy(pixels).permute(2, 0, 1)
    return images


def _read(path: str, size: int, exact: bool) -> Image.Image:
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            if mode in _EIGHT_BITS and (not exact or (width, height) == (size, size)):
                image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded at a half, a quarter, ...
                return _square(image.convert("RGB"), size)
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise UsageError(f"{path} cannot be read as an image ({error}): repair or remove it") from error
    if mode not in _EIGHT_BITS:
        raise UsageError(f"{path} has pixels of mode {mode}, but they must have 8 bits per channel: convert the image")
    raise UsageError(f"{path} has {width} x {height} pixels, but these images must have {size} x {size}: replace it")


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


class Paths(Sequence[str]):
    """Many file names in one piece of memory. As a list of strings, forked processes that read it would each come to
    own a copy, since counting references writes to every string."""

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [path.encode(errors="surrogateescape") for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # no slices
        return self._text[self._ends[row] : self._ends[row + 1]].decode(errors="surrogateescape")
