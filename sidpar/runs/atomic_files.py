"""Files that are there whole or not at all, and what JSON can hold."""

import math
import os
from pathlib import Path
from typing import Any

from sidpar.errors import StorageError


def write_whole(path: Path, text: str) -> None:
    """A file that is there with all of its text, or as it was before. Raises StorageError."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text)
        publish(temporary, path)
    except OSError as error:
        raise StorageError(path, error) from error


def publish(temporary: Path, path: Path) -> None:
    """Give a file or a folder its name, once it is on the disk: after a power cut, what has the name is whole."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: a run that diverged shows null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
