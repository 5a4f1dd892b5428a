"""Signals to one process: in a run, in the run after it, and when no run is under way. Ranks: test_interruption.py."""

import signal
import subprocess
import sys

import pytest

from tests.harness import ROOT

pytestmark = pytest.mark.processes

PROGRAM = """
import os, signal, sys, time
from sidpar import Runtime
from sidpar.training.stopping import Stopping

def asked(number, questions=3):
    with Runtime.start(device="cpu") as runtime:
        stopping = Stopping(runtime)
        heard = [stopping.is_due()]
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        heard += [stopping.is_due() for _ in range(questions)]
        stopping.finish()
        return heard

"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_one_run_after_the_other_hears() -> None:
    done = run("print(asked(signal.SIGUSR1), asked(signal.SIGUSR1), asked(signal.SIGUSR1))")
    assert done.stdout.strip() == " ".join(["[False, False, True, True]"] * 3), done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_after_a_run_signals_are_the_programs_again(name: str) -> None:
    done = run(f"asked(signal.SIGUSR1); os.kill(os.getpid(), signal.{name}); time.sleep(5); print('alive')")
    assert done.returncode == -signal.Signals[name], done.stderr
    assert "alive" not in done.stdout


def test_without_a_run_that_can_stop_sigterm_ends_it_and_says_where() -> None:
    done = run("Runtime.start(device='cpu').__enter__(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)")
    assert done.returncode == 128 + signal.SIGTERM
    assert "rank 0 was ended in the action: start" in done.stderr


def test_a_program_with_a_handler_of_its_own_keeps_it() -> None:
    done = run(
        "signal.signal(signal.SIGTERM, lambda *_: print('mine')); Runtime.start(device='cpu').__enter__(); "
        "os.kill(os.getpid(), signal.SIGTERM); print('alive')"
    )
    assert done.stdout.split() == ["mine", "alive"], done.stderr


def test_a_forked_child_is_no_rank() -> None:
    """Its signals are not taken for its parent's."""
    done = run(
        "runtime = Runtime.start(device='cpu'); stopping = Stopping(runtime); child = os.fork()\n"
        "if child == 0: os._exit(time.sleep(20))\n"
        "time.sleep(0.5); os.kill(child, signal.SIGTERM); _, status = os.waitpid(child, 0); time.sleep(0.3)\n"
        "print(os.waitstatus_to_exitcode(status), runtime.signals.stop_requested)"
    )
    assert done.stdout.split() == [str(-signal.SIGTERM), "False"], done.stderr


@pytest.mark.parametrize("hangs", [True, False])
def test_a_stop_does_not_wait_for_a_device_that_hangs(hangs: bool) -> None:
    """Asked by SIGTERM while the main thread is in a step: it ends at once, or waits for its end."""
    done = run(
        f"""
from sidpar.distributed.signals import Signals
signals = Signals(lambda verb: f"rank 0 {{verb}} in step 3", lambda: False, lambda: {hangs})
signals.listen()
signals.finish_step_on_request()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1.5)
print("the step is over", signals.stop_requested)
"""
    )
    assert (done.returncode, "rank 0 was ended in step 3" in done.stderr) == ((143, True) if hangs else (0, False))
    assert ("the step is over True" in done.stdout) != hangs
