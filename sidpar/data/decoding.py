"""Decodes image files: grey or RGB, uint8, all of one size."""

import math
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from sidpar.errors import UsageError

Mode = Literal["L", "RGB"]
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


def read_images(
    paths: Sequence[str],
    size: int,
    *,
    exact: bool = False,
    share: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """The images in these files, [N, 3, size, size] in uint8: the square in the middle of each, resized.

    Decodes in one thread: for small images, several threads slow each other down.

    Args:
        exact: refuse images of other sizes in place of resizing them.
        share: how much of an image's shorter side the square has.
        seeds: in its place, a random part of each (`random_part`), drawn by these.

    Raises UsageError that names a file which is not an image of 8 bits per channel.
    """
    images = torch.empty((len(paths), 3, size, size), dtype=torch.uint8)
    for row, path in enumerate(paths):
        if seeds is None:
            images[row] = decode(path, "RGB", (size, size), exact=exact, share=share)
        else:
            images[row] = decode_part(path, size, seeds[row])
    return images


def decode(path: str, mode: Mode, size: tuple[int, int], *, exact: bool = False, share: float = 1.0) -> Tensor:
    """The image in this file, [1 or 3, height, width] in uint8: upright, resized until it covers `size` / `share`, and
    cropped around its centre.

    Args:
        mode: grey or RGB.
        size: width and height.
        exact: refuse an image of another size in place of resizing it.

    Raises UsageError that names a file which is not an image of 8 bits per channel.
    """

    def fitted(image: Image.Image) -> Image.Image:
        if exact and image.size != size:
            needed = f"{size[0]} x {size[1]}"
            raise UsageError(
                f"{path} has {image.width} x {image.height} pixels, but these images must have {needed}: "
                "resize or replace it"
            )
        # A large JPEG is decoded at a half, a quarter, ... Twice the larger side: it may lie on its side.
        side = math.ceil(2 * max(size) / share)
        image.draft(None, (side, side))
        upright = _upright(image, _loaded(image, mode))
        return ImageOps.fit(upright, size, Image.Resampling.BILINEAR, bleed=(1 - share) / 2)

    return _pixels(path, fitted)


def decode_part(path: str, size: int, seed: int) -> Tensor:
    """A random part of the image in this file, resized to [3, size, size] in uint8, upright: `random_part`. Raises
    UsageError as `decode` does."""

    def part(image: Image.Image) -> Image.Image:
        width, height = image.size
        left, top, right, bottom = random_part(width, height, seed)
        # A large JPEG is decoded at a half, a quarter, ... as long as the part has twice the pixels that are needed.
        shrunk = 2 * size / min(right - left, bottom - top)
        image.draft(None, (math.ceil(shrunk * width), math.ceil(shrunk * height)))
        pixels = _loaded(image, "RGB")
        across, down = pixels.width / width, pixels.height / height
        box = (left * across, top * down, min(right * across, pixels.width), min(bottom * down, pixels.height))
        # Cut out first, turned upright then: parts of an image on its side are as likely.
        return _upright(image, pixels.resize((size, size), Image.Resampling.BILINEAR, box))

    return _pixels(path, part)


def random_part(width: int, height: int, seed: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part of an image: 8 to 100 % of its area, 3:4 to 4:3, anywhere within it
    (Szegedy et al. 2015, "Going deeper with convolutions", section 6). Where ten such parts do not fit, the largest one
    in the middle."""
    draw = random.Random(seed)
    for _ in range(10):
        area = width * height * draw.uniform(0.08, 1.0)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _pixels(path: str, made: Callable[[Image.Image], Image.Image]) -> Tensor:
    """What is made of the image in a file, [channels, height, width]. Raises UsageError that names the file."""
    try:
        with Image.open(path) as image:
            if image.mode in _EIGHT_BITS:
                pixels = np.array(made(image))
                return torch.from_numpy(pixels).view(pixels.shape[0], pixels.shape[1], -1).permute(2, 0, 1)
            found = image.mode
    except UsageError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise UsageError(f"{path} cannot be read as an image ({error}): replace, repair or remove it") from error
    raise UsageError(f"{path} has pixels of mode {found}, but they must have 8 bits per channel: convert the image")


def _loaded(image: Image.Image, mode: Mode) -> Image.Image:
    image.load()
    # What is transparent shows its colour, whatever the mode. Pillow would say of palettes that it is so.
    image.info.pop("transparency", None)
    return image if image.mode == mode else image.convert(mode)


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
