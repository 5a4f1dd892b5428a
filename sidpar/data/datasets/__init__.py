"""The datasets by name.

May import: config.groups, data.
Start reading: base.py, what a dataset says of itself; digits.py, the shortest one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sidpar.config.groups.checks import filled, known, without_effect
from sidpar.config.groups.data import DataConfig
from sidpar.data.dataset import Dataset
from sidpar.data.datasets.base import Source
from sidpar.data.datasets.digits import DIGITS
from sidpar.data.datasets.image_folder import IMAGE_FOLDER
from sidpar.data.datasets.tiny_imagenet import TINY_IMAGENET
from sidpar.data.datasets.torchvision_files import CIFAR10, CIFAR100, FASHION_MNIST
from sidpar.errors import UsageError

DATASETS: dict[str, Source] = {
    source.name: source for source in (DIGITS, FASHION_MNIST, CIFAR10, CIFAR100, TINY_IMAGENET, IMAGE_FOLDER)
}


def complete(config: DataConfig) -> DataConfig:
    """The settings of `data` with their defaults filled in. Raises UsageError for settings that the named dataset does
    not read."""
    reads = known("data.name", config.name, DATASETS).reads
    if "root" not in reads:
        without_effect("data", config, ["root", "download"], f"data.name={config.name} is not read from a folder")
    if "download" not in reads:
        without_effect("data", config, ["download"], f"torchvision does not download data.name={config.name}")
    unread = [name for name in ("image_size", "workers") if name not in reads]
    without_effect("data", config, unread, f"data.name={config.name} has images of one size and keeps them in memory")
    return replace(config, **filled(config, **reads))


def load(name: str, root: str | None = None, **settings: Any) -> Dataset:
    """A dataset by name, from the folder `root`, by default data. Raises UsageError if it is not there in its layout.

    Args:
        settings: those of `Source.reads`: download for torchvision's (let it fetch the dataset), image_size (height and
            width that images are brought to; 64) and workers (processes that decode; 0) for image_folder.
    """
    source = known("data.name", name, DATASETS)
    if "root" in source.reads:
        settings["root"] = Path(root or "data")
    unread = [f"data.{setting}" for setting in settings if setting not in source.reads]
    if unread:
        raise UsageError(f"data.name={name} does not read {', '.join(unread)}: remove it")
    return source.load(**settings)
