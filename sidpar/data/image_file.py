"""An image from a file, as a network was trained to see it."""

from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sidpar.data.preprocessing import Preprocessing
from sidpar.errors import UsageError

_MODES = {1: "L", 3: "RGB"}


def read_image(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """[channels, H, W] in fp32 with values 0..white, for `Preprocessing.normalise`.

    Grey or RGB as the network needs it. An image of another size is resized until it covers H x W, and cropped around
    its centre. Raises UsageError for a file that is no image of 8 bits per channel.
    """
    channels, height, width = preprocessing.image_shape
    if channels not in _MODES:
        raise UsageError(
            f"the network takes images of {channels} channels, which no image file has: load them yourself"
        )
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError as error:
        raise UsageError(f"there is no image {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as an image: {error}") from error
    if image.mode.startswith(("I", "F")):  # convert() would clip these to 255
        raise UsageError(f"{path} has more than 8 bits per channel (mode {image.mode}): save it with 8")
    image = image.convert(_MODES[channels])
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, channels)
    return (values * (preprocessing.white / 255)).permute(2, 0, 1).contiguous()
