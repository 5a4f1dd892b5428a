"""Reads an image from a file, in the form that a network was trained on."""

from pathlib import Path
from typing import Literal

from torch import Tensor

from sidpar.data.decoding import decode
from sidpar.data.preprocessing import Preprocessing
from sidpar.errors import UsageError

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}


def read_image(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """An image from a file: [channels, H, W] in fp32 with values 0..white, for `preprocessing.normalise`.

    Grey or RGB as the network needs it, and otherwise read as image files are in training: upright, resized until it
    covers H x W pixels, and cropped around its centre.

    Args:
        path: the file.
        preprocessing: what the network was trained to see, from `load_preprocessing`.

    Raises:
        UsageError: there is no such file, or it is no image of 8 bits per channel.
    """
    channels, height, width = preprocessing.image_shape
    if channels not in _MODES:
        raise UsageError(
            f"the network takes images of {channels} channels, but image files have 1 or 3: load them yourself"
        )
    if not Path(path).exists():
        raise UsageError(f"there is no image {path}")
    return decode(str(path), _MODES[channels], (width, height)).contiguous() * (preprocessing.white / 255)
