"""How far a device has come, with events that complete when the test says so."""

import threading

import pytest

from sidpar.distributed import progress
from sidpar.distributed.progress import Progress, end_when_late


class Device:
    """Completes what is recorded when it is told to."""

    def __init__(self) -> None:
        self.recorded, self.completed = 0, 0

    def event(self) -> "Recorded":
        return Recorded(self)

    def complete(self, number: int = 1) -> None:
        self.completed += number


class Recorded:
    def __init__(self, device: Device) -> None:
        self._device, self._place = device, 0

    def record(self) -> None:
        self._device.recorded += 1
        self._place = self._device.recorded

    def query(self) -> bool:
        return self._place <= self._device.completed


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(progress, "APART", 0.0)
    return Device()


def test_what_the_device_has_completed_last(device: Device) -> None:
    found = Progress(device.event)
    assert found.passed() is None
    for label in ("one", "two", "three"):
        found.mark(lambda label=label: label)
    assert found.passed() is None
    device.complete(2)
    assert found.passed() == "two"
    found.mark(lambda: "four")  # with an event used before
    assert found.passed() == "two"
    device.complete(2)
    assert found.passed() == "four"
    assert found.behind() == 0.0


def test_marks_are_apart() -> None:
    device = Device()
    found = Progress(device.event)
    for _ in range(100):
        found.mark(lambda: "often")
    assert device.recorded < 100


def test_a_device_that_hangs(device: Device) -> None:
    found = Progress(device.event)
    assert not found.hangs(0.1), "an idle device does not"
    found.mark(lambda: "one")
    found.mark(lambda: "two")
    assert found.hangs(0.1)
    threading.Timer(0.1, device.complete).start()
    assert not found.hangs(5.0), "it goes on"


def test_what_is_queued_for_too_long(device: Device) -> None:
    found, ended = Progress(device.event), threading.Event()
    found.mark(lambda: "one")
    seconds: list[float] = []
    end_when_late(found, 0.2, lambda late: (seconds.append(late), ended.set()))
    assert ended.wait(5.0)
    assert seconds[0] > 0.2


def test_nothing_that_is_completed_in_time_is_late(device: Device) -> None:
    found, ended = Progress(device.event), threading.Event()
    end_when_late(found, 0.3, lambda _: ended.set())
    for _ in range(5):
        found.mark(lambda: "in time")
        assert not ended.wait(0.1)
        device.complete()
    assert not ended.wait(0.5)
