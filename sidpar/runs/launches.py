"""Which launches a run folder belongs to, and whether one of them was stopped on request."""

import glob
from pathlib import Path

from sidpar.config.schema import Config
from sidpar.distributed.environment import Launch
from sidpar.distributed.runtime import Runtime
from sidpar.runs.atomic_files import write_whole

LAUNCH = ".launch"
REQUEUE = "REQUEUE"
"""A file that says that the run was stopped on request, and is to be started again. torchrun does not pass on the exit
status that says the same."""


def was_stopped(config: Config, launch: Launch) -> bool:
    """Whether the run was stopped on request, and torchrun, which does not know that, has restarted it."""
    path = Path(config.run.dir) if config.run.dir else earlier_folder(config.run.name, launch)
    try:
        return path is not None and _names(path / REQUEUE, launch)
    except OSError:  # a folder that cannot be used is refused by `find_run_folder`, with the other ranks
        return False


def ask_for_requeue(path: Path, runtime: Runtime) -> None:
    """Leave the file that says so, with the launchers that must not go on by themselves. All ranks call it."""
    launchers = launchers_of(runtime)
    if runtime.rank == 0:
        write_whole(path / REQUEUE, "\n".join(["stopped on request: the same command goes on", *launchers]))


def earlier_folder(name: str, launch: Launch) -> Path | None:
    """The folder that this launch has made before torchrun started the ranks again."""
    marks = Path("runs").glob(f"{glob.escape(name)}-*/{LAUNCH}")
    return next((mark.parent for mark in marks if _names(mark, launch)), None)


def _names(mark: Path, launch: Launch) -> bool:
    return launch.launcher is not None and mark.exists() and launch.launcher in mark.read_text().splitlines()


def launchers_of(runtime: Runtime) -> list[str]:
    """Of all ranks."""
    return sorted({name for name in runtime.exchange("launcher", runtime.launch.launcher) if name is not None})
