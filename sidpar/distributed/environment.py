"""The environment variables that matter, read here and nowhere else, and the launcher that has set them."""

import os
import platform
from pathlib import Path
from typing import NamedTuple


class Launch(NamedTuple):
    """How the ranks were started."""

    launcher: str | None = None
    """A unique name of the torchrun that started this rank, and restarts it if it fails. None without torchrun."""
    hosts: int = 1
    """The number of torchrun processes that have started the ranks."""


class Environment(NamedTuple):
    """What sidpar reads of torchrun's variables; torch reads the rest."""

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
    """Host, process id and start time: process ids are used again, and so is torchrun's own name for a job."""
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat")
    began = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
    return f"{platform.node()} {parent} {began}"
