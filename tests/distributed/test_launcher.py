"""What a rank does about a launcher that waits for a host which has gone silent."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidpar.distributed import launcher as cut_off

pytestmark = pytest.mark.processes


class Store:
    def __init__(self, answer: Callable[[], object]) -> None:
        self._answer = answer

    def check(self, keys: list[str]) -> bool:
        return bool(self._answer())


def silence() -> None:
    time.sleep(60)


def closed() -> None:
    raise RuntimeError("connection reset")


@pytest.fixture
def parent(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """A process by the name that the test asks for."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    process = subprocess.Popen([request.param, "60"], executable=sleep)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("parent", "answer", "hosts", "ended"),
    [
        ("torchrun", silence, 2, True),
        ("torchrun", silence, 1, False),
        ("torchrun", lambda: False, 2, False),
        ("torchrun", closed, 2, False),
        ("other", silence, 2, False),
    ],
    ids=["cut off", "one host", "store answers", "store closed", "not torchrun"],
    indirect=["parent"],
)
def test_only_a_torchrun_that_is_cut_off_is_ended(
    parent: subprocess.Popen[bytes],
    answer: Callable[[], object],
    hosts: int,
    ended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not before this process ends, whose traceback is shown first."""
    at_exit: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cut_off, "PATIENCE", 0.3)
    monkeypatch.setattr(cut_off.os, "getppid", lambda: parent.pid)
    monkeypatch.setattr(cut_off.atexit, "register", lambda *call: at_exit.append(call))
    said = cut_off.end_launcher_if_cut_off(Store(answer), hosts)  # type: ignore[arg-type]
    assert parent.poll() is None
    for function, *arguments in at_exit:
        function(*arguments)
    assert (said is not None) == ended
    if ended:
        assert said is not None
        assert "its torchrun, which would go on waiting, is ended with this rank" in said
        assert parent.wait(timeout=10) == -9
    else:
        assert at_exit == []
