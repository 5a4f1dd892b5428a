"""The paper's preprocessing, for whole batches at once (appendix B.1.1)."""

import torch
from torch import Tensor
from torch.nn import functional as F


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


def random_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [B, channels, H, W] padded with zeros by `crop_padding` and cropped back at a random place."""
    batch, _, height, width = images.shape
    padding = crop_padding(height)
    padded = F.pad(images, (padding,) * 4)
    top, left = to_device(torch.randint(0, 2 * padding + 1, (2, batch), generator=generator), images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    sample = torch.arange(batch, device=images.device)
    # Indexing [B, H, W, channels] moves whole pixels; the result goes back to [B, channels, H, W].
    return padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half."""
    flips = to_device(torch.rand(len(images), generator=generator) < 0.5, images.device)
    return torch.where(flips[:, None, None, None], images.flip(-1), images)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor to the device without waiting for what the device is doing."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
