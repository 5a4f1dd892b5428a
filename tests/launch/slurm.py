"""A SLURM of two nodes or more, as a user of it sees it: jobs, their states, and what becomes of them."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import ROOT

LOCAL_CLUSTER = ROOT.parent / "shared" / "tools" / "slurm-local.sh"
PATIENCE = 600.0
"""Seconds for anything to happen."""


class NoClusterError(Exception):
    """There is no SLURM here, and why none could be started."""


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster that answers, else one on this machine where there is a tool to start it. Raises NoClusterError."""
    if shutil.which("sbatch") is None:
        raise NoClusterError("SLURM's programs are not installed")
    started = False
    if _nodes() == 0:
        if shutil.which("slurmctld") is None or os.getuid() != 0 or not LOCAL_CLUSTER.exists():
            raise NoClusterError(
                "no cluster answers to sinfo, and one can be started by root only, with the tool for it"
            )
        started = subprocess.run([LOCAL_CLUSTER, "start"], capture_output=True, check=False).returncode == 0
    try:
        if _nodes() < 2:
            raise NoClusterError(f"two nodes are needed, and sinfo shows {_nodes()}")
        yield
    finally:
        if started:
            subprocess.run([LOCAL_CLUSTER, "stop"], capture_output=True, check=False)


@dataclass(frozen=True)
class Job:
    """A training by launch/slurm.sbatch, on two nodes with two CPU ranks each."""

    number: str
    folder: Path
    """The run folder."""

    @classmethod
    def submit(cls, folder: Path, *flags: str, **knobs: str) -> "Job":
        here = {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "RANKS_PER_NODE": "2"}
        environment = os.environ | here | {"RUN_DIR": str(folder)} | knobs
        options = ["--parsable", "--nodes=2", f"--job-name={folder.name}", f"--output={_log(folder)}"]
        command = ["sbatch", *options, "launch/slurm.sbatch", *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return cls(done.stdout.strip(), folder)

    @property
    def log(self) -> str:
        """What all starts of the job have printed."""
        return _log(self.folder).read_text() if _log(self.folder).exists() else ""

    def state(self) -> dict[str, str]:
        """JobState, Reason, Restarts, ExitCode and more."""
        return dict(re.findall(r"(\w+)=(\S*)", command("scontrol", "show", "job", self.number)))

    def in_the_middle(self) -> None:
        """Wait until a part of the training is done."""
        metrics = self.folder / "metrics.jsonl"
        self._until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 20)

    def ended(self) -> dict[str, str]:
        """Wait for the end, and give the last state. SLURM lets a requeued job wait for two minutes; not here."""
        while (state := self.state())["JobState"] in ("PENDING", "RUNNING", "COMPLETING"):
            if state["Reason"] == "BeginTime":
                command("scontrol", "update", f"jobid={self.number}", "StartTime=now")
            self._until(lambda before=state["JobState"]: self.state()["JobState"] != before, 10.0)
        return state

    def _until(self, happened: Callable[[], bool], at_most: float = PATIENCE) -> None:
        deadline = time.monotonic() + at_most
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.3)
        assert at_most < PATIENCE or time.monotonic() < deadline, self.log


def command(*words: str) -> str:
    """What it prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _log(folder: Path) -> Path:
    return folder.with_suffix(".log")


def _nodes() -> int:
    """That work; none where no cluster answers."""
    done = subprocess.run(
        ["sinfo", "-h", "-t", "idle,alloc,mix", "-o", "%D"], capture_output=True, text=True, check=False
    )
    return sum(int(line) for line in done.stdout.split())
