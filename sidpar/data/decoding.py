"""Decodes image files: grey or RGB, uint8, all of one size."""

import struct
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from sidpar.errors import UsageError

_EIGHT_BITS = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each orientation of EXIF."""


def read_images(paths: Sequence[str], size: int, *, exact: bool = False) -> Tensor:
    """The images in these files, [N, 3, size, size] in uint8: the square in the middle of each, resized.

    Decodes in one thread: for small images, several threads slow each other down.

    Args:
        exact: refuse images of other sizes in place of resizing them.

    Raises UsageError that names a file which is not an image of 8 bits per channel.
    """
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
    for row, path in enumerate(paths):
        images[row] = decode(path, "RGB", (size, size), exact=exact)
    return images


def decode(path: str, mode: Literal["L", "RGB"], size: tuple[int, int], *, exact: bool = False) -> Tensor:
    """The image in this file, [1 or 3, height, width] in uint8: upright, resized until it covers `size`, and cropped
    around its centre.

    Args:
        mode: grey or RGB.
        size: width and height.
        exact: refuse an image of another size in place of resizing it.

    Raises UsageError that names a file which is not an image of 8 bits per channel.
    """
    try:
        with Image.open(path) as image:
            found, (width, height) = image.mode, image.size
            if found in _EIGHT_BITS and (not exact or (width, height) == size):
                # A large JPEG is decoded at a half, a quarter, ... Twice the larger side: it may lie on its side.
                image.draft(None, (2 * max(size), 2 * max(size)))
                image.load()
                # What is transparent shows its colour, whatever the mode. Pillow would say of palettes that it is so.
                image.info.pop("transparency", None)
                upright = _upright(image, image.convert(mode))
                pixels = np.array(ImageOps.fit(upright, size, Image.Resampling.BILINEAR))
                return torch.from_numpy(pixels).view(size[1], size[0], -1).permute(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise UsageError(f"{path} cannot be read as an image ({error}): replace, repair or remove it") from error
    if found not in _EIGHT_BITS:
        raise UsageError(f"{path} has pixels of mode {found}, but they must have 8 bits per channel: convert the image")
    needed = f"{size[0]} x {size[1]}"
    raise UsageError(f"{path} has {width} x {height} pixels, but these images must have {needed}: resize or replace it")


def _upright(file: Image.Image, image: Image.Image) -> Image.Image:
    """`image`, turned upright by the EXIF data of the file that it came from."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return image  # the pixels are whole, and what is wrong with the rest is not known to be about them
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


class Paths(Sequence[str]):
    """Many file names in one piece of memory. Forked processes that read a list of strings would each get a copy of it,
    since reference counts are written to every string."""

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [path.encode(errors="surrogateescape") for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # no slices
        return self._text[self._ends[row] : self._ends[row + 1]].decode(errors="surrogateescape")
