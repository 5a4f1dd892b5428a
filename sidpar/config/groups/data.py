"""The dataset, and how batches are made of it."""

from dataclasses import dataclass

from sidpar.config.groups.checks import at_least
from sidpar.errors import UsageError


@dataclass(frozen=True)
class DataConfig:
    """The dataset. `digits` is embedded; the others are read from folders under `root`, each in its usual layout."""

    name: str = "digits"
    """digits: embedded; fashion_mnist, cifar10, cifar100: torchvision's layouts; tiny_imagenet: the official layout,
    all of its classes or some; image_folder: train/<class>/... and val/<class>/... with images of any size; imagenet:
    ILSVRC2012's folders train and val, val sorted by class or with its ground truth."""
    root: str | None = None
    """Folder with the dataset; by default data."""
    download: bool = False
    """Let torchvision download the dataset into `root`."""
    batch_size: int = 128
    """Global batch B, over all ranks."""
    eval_batch_size: int = 512
    """Global batch of evaluations."""
    augment: bool = True
    """The paper's random crops and flips (no flips for digits); for imagenet, random parts brought to one size, and
    flips."""
    image_size: int | None = None
    """image_folder, imagenet: height and width that the square in the middle of each image is resized to; by default
    64 and 224."""
    workers: int | None = None
    """image_folder, imagenet: processes of each rank that decode training images ahead, and as many for test images; by
    default 2 and 4; 0 for none."""
    label_noise: float = 0.0
    """Share of the training labels that are moved to another class, drawn by run.seed; label_noise.json in the run
    folder tells which."""

    def __post_init__(self) -> None:
        at_least("data.batch_size", self.batch_size, 1)
        at_least("data.eval_batch_size", self.eval_batch_size, 1)
        if not 0 <= self.label_noise < 1:
            raise UsageError(f"data.label_noise must lie in [0, 1), got {self.label_noise}")
        if self.image_size is not None:
            at_least("data.image_size", self.image_size, 1)
        if self.workers is not None:
            at_least("data.workers", self.workers, 0)
