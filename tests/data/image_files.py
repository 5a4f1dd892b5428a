"""Folders of real images for tests: scikit-learn's digits as PNGs, a part of Tiny-ImageNet; and a disk that is full."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def digits_folder(root: Path, train: int = 12, val: int = 4, classes: int = 4, scale: int = 2) -> Path:
    """train/<digit>/*.png and val/<digit>/*.png: so many of each class, grey, 8 `scale` pixels wide."""
    digits = load_digits()
    for label in range(classes):
        images = digits.images[digits.target == label]
        for number, image in enumerate(images[: train + val]):
            folder = root / ("train" if number < train else "val") / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.kron((image * 15).astype(np.uint8), np.ones((scale, scale), dtype=np.uint8))
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


def tiny_imagenet_subset(official: Path, root: Path, classes: int, train: int) -> Path:
    """The same layout in `root` with the first classes alone, and so many training images of each."""
    base = root / "tiny-imagenet-200"
    wnids = (official / "wnids.txt").read_text().split()[:classes]
    for wnid in wnids:
        folder = base / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for path in sorted((official / "train" / wnid / "images").iterdir())[:train]:
            (folder / path.name).symlink_to(path)
    (base / "val").symlink_to(official / "val")
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    return root


@contextmanager
def no_room(size: int = 1000) -> Iterator[None]:
    """Meanwhile, this process cannot write files beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
