"""Folders of real images for tests: scikit-learn's digits as PNGs, Tiny-ImageNet from the pack beside the checkout."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.harness import ROOT

SHARED = ROOT.parent / "shared" / "data"


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


def tiny_imagenet(root: Path) -> Path:
    """The official layout with 25 classes, 500 + 50 images of each."""
    if not SHARED.exists():
        pytest.skip(f"no datasets at {SHARED}")
    script = str(SHARED / "realdata.py")
    subprocess.run([sys.executable, script, "tiny_imagenet", str(root)], check=True, capture_output=True)
    return root
