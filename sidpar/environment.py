"""The environment variables that matter, read here and nowhere else."""

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """The launcher's own account of this start."""

    identity: str | None = None
    """torchrun's name for the job, the same for all its restarts."""
    restarts: int = 0
    """How often torchrun has started the ranks again."""
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
    restarts, hosts = int(get("TORCHELASTIC_RESTART_COUNT", "0")), int(get("GROUP_WORLD_SIZE", "1"))
    launch = Launch(get("TORCHELASTIC_RUN_ID"), restarts, hosts)
    return Environment(int(get("WORLD_SIZE", "1")), int(get("LOCAL_RANK", "0")), launch)
