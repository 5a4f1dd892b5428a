"""The environment variables that matter, read here and nowhere else, and the launcher that has set them."""

import os
import platform
from pathlib import Path
from typing import NamedTuple


class Launch(NamedTuple):
    """How the ranks have come to be."""

    launcher: str | None = None
    """The torchrun that started this rank, and starts it again if it fails; no other process on earth has this name.
    None without torchrun."""
    hosts: int = 1
    """How many torchruns have started the ranks together."""


class Environment(NamedTuple):
    """What torchrun tells a rank; the rest it tells torch."""

    world_size: int
    local_rank: int
    launch: Launch


def read_environment() -> Environment:
    """What torchrun sets; all absent means one process."""
    get = os.environ.get
    launcher = None if get("TORCHELASTIC_RUN_ID") is None else _name_of_parent()
    launch = Launch(launcher, int(get("GROUP_WORLD_SIZE", "1")))
    return Environment(int(get("WORLD_SIZE", "1")), int(get("LOCAL_RANK", "0")), launch)


def _name_of_parent() -> str:
    """Host, process, and when it began: numbers of processes come again, and so does torchrun's own name for a job."""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    began = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
    return f"{platform.node()} {parent} {began}"
