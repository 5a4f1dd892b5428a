"""The description of a dataset, before it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidpar.data.dataset import Dataset


@dataclass(frozen=True)
class Source:
    """A dataset that `data.name` offers: a file of this package and a line in its registry."""

    name: str
    load: Callable[..., Dataset]
    """Called with the settings below, by keyword, `root` as a Path. Raises UsageError if the dataset is not there."""
    reads: Mapping[str, Any] = field(default_factory=dict)
    """The settings of `data` that it reads, of root, download, image_size and workers, and their defaults."""
