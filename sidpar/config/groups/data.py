"""The dataset, and how batches are made of it."""

from dataclasses import dataclass
from types import MappingProxyType

from sidpar.config.groups.refusals import less_than, outside, refuse


@dataclass(frozen=True)
class DataConfig:
    """The dataset. `digits` comes with scikit-learn; the others are read from folders under `root`, each in its usual
    layout."""

    name: str = "digits"
    """digits: comes with scikit-learn; fashion_mnist, cifar10, cifar100: in torchvision's layout; tiny_imagenet: in its
    official layout, with all classes or some; image_folder: train/<class>/... and val/<class>/..., images of any
    size."""
    root: str | None = None
    """Folder that holds the dataset; by default data."""
    download: bool = False
    """Let torchvision download the dataset into `root`."""
    batch_size: int = 128
    """Global batch size B: images per step, over all ranks."""
    eval_batch_size: int = 512
    """Global batch size in evaluations."""
    augment: bool = True
    """Train on random crops and flips, as in the paper (no flips for digits)."""
    image_size: int | None = None
    """image_folder: height and width of the images. The square in the middle of each image is resized to it; by default
    64."""
    workers: int | None = None
    """image_folder: worker processes per rank that decode training images in advance, and as many again for test
    images. By default 2; with 0, the rank itself decodes."""
    label_noise: float = 0.0
    """Share of the training labels that are changed to another class, chosen at random by run.seed. label_noise.json in
    the run folder lists them."""

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
