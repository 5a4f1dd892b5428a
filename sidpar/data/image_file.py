"""An image from a file, as a network was trained to see it."""

from pathlib import Path

from torch import Tensor

from sidpar.data.decoding import Mode, decode
from sidpar.data.preprocessing import Preprocessing
from sidpar.errors import UsageError

_MODES: dict[int, Mode] = {1: "L", 3: "RGB"}


def read_image(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """[channels, H, W] in fp32 with values 0..white, for `Preprocessing.normalise`.

    Grey or RGB as the network needs it, and otherwise read as image files are for tests: upright, resized until it
    covers H x W or as much more as `preprocessing.share` says, and cropped around its centre. Raises UsageError for a
    file that is no image of 8 bits per channel.
    """
    channels, height, width = preprocessing.image_shape
    if channels not in _MODES:
        raise UsageError(
            f"the network takes images of {channels} channels, which no image file has: load them yourself"
        )
    if not Path(path).exists():
        raise UsageError(f"there is no image {path}")
    pixels = decode(str(path), _MODES[channels], (width, height), share=preprocessing.share)
    return pixels.contiguous() * (preprocessing.white / 255)
