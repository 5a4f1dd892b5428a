"""Standard streams that are closed, that nobody reads, or that lie on a full disk."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidpar.runs.run_folder import SUMMARY
from tests.harness import ROOT

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

pytestmark = pytest.mark.processes


def redirected(streams: str, *command: str) -> subprocess.CompletedProcess[str]:
    """The command with its streams redirected by the shell."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        timeout=120,
        check=False,
    )


def without_reader(*command: str) -> subprocess.CompletedProcess[str]:
    """The command with a pipe as standard output whose other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, *command],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TORCHRUN += ["--signals-to-handle", "SIGTERM,SIGINT,SIGQUIT"]
TRAINING = ["-m", "sidpar.train", "--model.name", "wide_mlp", "--model.width", "16", "--model.num_refiners", "2"]
TRAINING += ["--optim.epochs", "3", "--parallel.device", "cpu", "--run.dir"]


@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["alone", "torchrun"])
def test_a_training_goes_on_without_its_terminal(launcher: list[str], tmp_path: Path) -> None:
    """Under nohup, which has SIGHUP ignored; the terminal closes once the training has begun."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the command inherits
    try:
        training = subprocess.Popen(
            [sys.executable, *launcher, *TRAINING, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert training.stdout is not None
    assert training.stderr is not None
    assert training.stdout.readline() != ""
    os.killpg(training.pid, signal.SIGHUP)
    training.stdout.close()
    errors = training.stderr.read()
    assert training.wait(timeout=120) == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert (tmp_path / SUMMARY).exists()


@pytest.mark.parametrize(
    ("launcher", "streams"),
    [
        *(([], streams) for streams in (">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full")),
        *((TORCHRUN, streams) for streams in ("<&- >&- 2>&-", ">/dev/full 2>/dev/full")),
    ],
)
def test_a_training_needs_no_streams(launcher: list[str], streams: str, tmp_path: Path) -> None:
    done = redirected(streams, *launcher, *TRAINING, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout + done.stderr
    assert (tmp_path / SUMMARY).exists()


PRINTING = [
    ["-m", "sidpar.train", "--print_config"],
    ["-m", "sidpar.train", "--help"],
    ["-m", "sidpar.plan", "--model.name", "wide_mlp", "--model.width", "16", "--ranks", "2"],
]


@pytest.mark.parametrize("command", PRINTING)
@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-"])
def test_a_printing_command_may_have_no_output(streams: str, command: list[str]) -> None:
    done = redirected(streams, *command)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("command", PRINTING)
def test_output_that_is_lost_on_a_full_disk_is_an_error(command: list[str]) -> None:
    done = redirected(">/dev/full", *command)
    reason = "the standard output cannot be written (No space left on device): redirect it elsewhere"
    assert (done.returncode, done.stderr) == (1, f"{command[1]}: error: {reason}\n")


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    "command", [["-m", "sidpar.train", "--optim.lr", "-1"], ["-m", "sidpar.plot", "nowhere"]], ids=["flag", "folder"]
)
def test_a_mistake_that_cannot_be_told_is_one_all_the_same(command: list[str], streams: str) -> None:
    assert redirected(streams, *command).returncode == 2


@pytest.mark.parametrize("command", PRINTING)
def test_a_printing_command_ends_quietly(command: list[str]) -> None:
    done = without_reader(*command)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""
