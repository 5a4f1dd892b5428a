"""The device's time of a piece and the host's, on a GPU that is played: what is launched on it runs in order."""

import pytest
import torch
from torch import Tensor

from sidpar.calibration import timing
from sidpar.calibration.timing import Seconds, Timed, limiting, time_piece

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Machine:
    """A host, and a device that begins with a kernel once it is launched and those before it have ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.free = 0.0, 0.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.host)
        for name in ("mark", "synchronize", "head_start"):
            monkeypatch.setattr(timing.device, name, getattr(self, name))
        monkeypatch.setattr(timing.device, "seconds_between", lambda start, end: end - start)

    def launch(self, host: float, busy: float) -> None:
        self.host += host
        self.free = max(self.free, self.host) + busy

    def mark(self, place: torch.device) -> float:
        return max(self.free, self.host)

    def synchronize(self, place: torch.device) -> None:
        self.host = max(self.free, self.host)

    def head_start(self, place: torch.device, seconds: float) -> None:
        self.launch(0.0, seconds)

    def piece(self, host: float, busy: float, kernels: int = 20) -> tuple[Tensor]:
        """Kernels in the forward, and as many of twice the length in the backward."""
        for _ in range(kernels):
            self.launch(host, busy)
        output = torch.ones(1, requires_grad=True) * 1

        def backward(gradient: Tensor) -> None:
            for _ in range(kernels):
                self.launch(host, 2 * busy)

        output.register_hook(backward)
        return (output,)


@pytest.mark.parametrize(("host", "busy"), [(10.0, 1.0), (1.0, 10.0), (3.0, 3.0)])
def test_the_devices_time_is_its_own(host: float, busy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    timed = time_piece(lambda: machine.piece(host, busy), GPU)
    assert timed.device == pytest.approx(Seconds(20 * busy, 40 * busy))
    assert timed.launch == pytest.approx(Seconds(20 * host, 20 * host))


def test_on_a_cpu_both_are_what_the_host_takes() -> None:
    timed = time_piece(lambda: (torch.ones(4, requires_grad=True).exp(),), CPU)
    assert timed.device == timed.launch
    assert min(timed.device) > 0


def test_the_host_limits_where_all_launches_take_longer_than_all_work() -> None:
    """Not piece by piece: it queues a light piece while the device is busy with a heavy one."""
    light, heavy = Timed(Seconds(1, 2), Seconds(4, 4), ()), Timed(Seconds(10, 20), Seconds(4, 4), ())
    assert limiting([light, heavy]) == [light.device, heavy.device]
    assert limiting([light, light]) == [light.launch, light.launch]
