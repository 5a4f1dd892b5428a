"""The paper's preprocessing, for all images of a batch that are here at once (appendix B.1.1).

Numbers are drawn for every row of the batch, so that what becomes of a row does not depend on which others are here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sidpar.data.input_rows import pick


def count_values(images: Tensor) -> Tensor:
    """How often each value 0..255 occurs in each channel of uint8 images [N, channels, H, W]: [channels, 256]."""
    channels = range(images.shape[1])
    return torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in channels]).cpu()


def statistics(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, two tensors [channels, 1, 1], from `count_values`: exact, and without a
    float copy of the images."""
    values = torch.arange(256, dtype=torch.float64)
    total = counts.sum(1)
    mean = (counts * values).sum(1) / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    return mean.float()[:, None, None], variance.sqrt().clamp_min(1e-6).float()[:, None, None]


def crop_padding(size: int) -> int:
    """An eighth of the image: 4 pixels at 32x32, 8 at 64x64 (the paper's), 1 at 8x8."""
    return (size + 4) // 8


def random_crop(images: Tensor, rows: Sequence[int], batch_size: int, generator: torch.Generator) -> Tensor:
    """Each image [n, channels, H, W] padded with zeros by `crop_padding` and cropped back at a random place.

    Args:
        rows: which rows of a batch of B these images are, ascending.
    """
    count, _, height, width = images.shape
    padding = crop_padding(height)
    padded = F.pad(images, (padding,) * 4)
    drawn = torch.randint(0, 2 * padding + 1, (2, batch_size), generator=generator)
    top, left = to_device(pick(drawn.T, rows).T, images.device)
    vertical = top[:, None] + torch.arange(height, device=images.device)
    horizontal = left[:, None] + torch.arange(width, device=images.device)
    sample = torch.arange(count, device=images.device)
    # Indexing [n, H, W, channels] moves whole pixels; the result goes back to [n, channels, H, W].
    cropped = padded.permute(0, 2, 3, 1)[sample[:, None, None], vertical[:, :, None], horizontal[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def random_flip(images: Tensor, rows: Sequence[int], batch_size: int, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half; arguments as of `random_crop`."""
    flips = to_device(pick(torch.rand(batch_size, generator=generator) < 0.5, rows), images.device)
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor to the device without waiting for what the device is doing."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
