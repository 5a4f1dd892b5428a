"""The dataset, and how batches are made of it."""

from dataclasses import dataclass
from types import MappingProxyType

from sidpar.config.groups.refusals import less_than, outside, refuse


@dataclass(frozen=True)
class DataConfig:
    """The dataset. `digits` is embedded; the others are read from folders under `root`, each in its usual layout."""

    name: str = "digits"
    """digits: embedded; fashion_mnist, cifar10, cifar100: torchvision's layouts; tiny_imagenet: the official layout,
    all of its classes or some; image_folder: train/<class>/... and val/<class>/... with images of any size."""
    root: str | None = None
    """Folder with the dataset; by default data."""
    download: bool = False
    """Let torchvision download the dataset into `root`."""
    batch_size: int = 128
    """Global batch B, over all ranks."""
    eval_batch_size: int = 512
    """Global batch of evaluations."""
    augment: bool = True
    """The paper's random crops and flips (no flips for digits)."""
    image_size: int | None = None
    """image_folder: height and width that the square in the middle of each image is resized to; by default 64."""
    workers: int | None = None
    """image_folder: processes of each rank that decode training images ahead, and as many for test images; by
    default 2; 0 for none."""
    label_noise: float = 0.0
    """Share of the training labels that are moved to another class, drawn by run.seed; label_noise.json in the run
    folder tells which."""

    UNITS = MappingProxyType(
        {
            "batch_size": "images",
            "eval_batch_size": "images",
            "image_size": "pixels",
            "workers": "processes per rank",
            "label_noise": "share of the training labels",
        }
    )
    REFUSALS = (
        *less_than(1, "data.batch_size", "data.eval_batch_size"),
        *outside("[0, 1)", "data.label_noise"),
        *less_than(1, "data.image_size"),
        *less_than(0, "data.workers"),
    )

    def __post_init__(self) -> None:
        refuse(self, self.REFUSALS)
