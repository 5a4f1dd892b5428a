"""Writes files as a whole or not at all, and makes values fit for JSON."""

import math
import os
from pathlib import Path
from typing import Any

from sidpar.errors import StorageError


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it always has either its old or its new content. Raises StorageError."""
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text)
        publish(temporary, path)
    except OSError as error:
        raise StorageError(path, error) from error


def publish(temporary: Path, path: Path) -> None:
    """Rename a file or a folder once it is on the disk, so that after a power cut whatever has the name is complete."""
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
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
