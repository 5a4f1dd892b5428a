"""What `sidpar.distributed.device` says of a GPU is so."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sidpar.calibration.timing import time_piece
from sidpar.distributed import device
from sidpar.profiler.clock import Clock
from sidpar.runs.snapshot import Snapshot

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

GPU = torch.device("cuda", 0)
LONG = 400_000_000
"""Cycles of a GPU: more than a tenth of a second."""


def test_marks_tell_the_devices_time_and_not_the_hosts() -> None:
    device.synchronize(GPU)
    start = device.mark(GPU)
    torch.cuda._sleep(LONG)
    end = device.mark(GPU)
    device.synchronize(GPU)
    assert 0.1 < device.seconds_between(start, end) < 2


def test_the_host_has_its_head_start() -> None:
    device.synchronize(GPU)
    start = device.mark(GPU)
    device.head_start(GPU, 0.1)
    end = device.mark(GPU)
    device.synchronize(GPU)
    assert 0.1 <= device.seconds_between(start, end) < 1


def test_a_piece_of_small_kernels_is_the_hosts_work() -> None:
    """The GPU's own seconds of a hundred small kernels are far fewer than those of launching them; of a large product
    it is the other way round."""
    small, matrix = torch.ones(8, device=GPU, requires_grad=True), torch.ones(8192, 8192, device=GPU)

    def many() -> tuple[Tensor]:
        found = small
        for _ in range(100):
            found = found + 1
        return (found,)

    light, heavy = (time_piece(forward, GPU) for forward in (many, lambda: (matrix @ matrix,)))
    assert light.device.forward < 0.7 * light.launch.forward
    assert heavy.device.forward > 10 * heavy.launch.forward


def test_the_spans_of_a_clock_are_what_the_stream_did() -> None:
    clock = Clock(GPU)
    clock.start()
    for _ in range(2):
        with clock.span("forward"):
            torch.cuda._sleep(LONG)
    total, (first, second) = clock.read()
    assert first.end <= second.start <= second.end <= total
    for span in (first, second):
        assert span.end - span.start == pytest.approx(total / 2, rel=0.2)


def test_waiting_for_what_is_queued_leaves_other_streams_running() -> None:
    """As messages are, which wait for other ranks."""
    message = torch.cuda.Stream(GPU)
    torch.ones(10, device=GPU).sum()  # a kernel's first use would wait for all streams
    device.synchronize(GPU)
    with torch.cuda.stream(message):
        torch.cuda._sleep(10 * LONG)
    torch.ones(10, device=GPU).sum()
    device.wait_for_queued(GPU)
    assert not message.query()
    device.synchronize(GPU)
    assert message.query()


def test_peaks_and_what_may_be_planned_with() -> None:
    device.give_back_unused(GPU)
    device.reset_peak_memory(GPU)
    before, usable = device.peak_memory(GPU), device.usable_memory(GPU)
    block = torch.empty(2**28, dtype=torch.uint8, device=GPU)
    assert device.peak_memory(GPU) - before == 2**28
    assert device.allocated_memory(GPU) - before == 2**28
    reserved, of_process = device.peak_reserved(GPU), device.driver_memory(GPU)
    assert reserved is not None
    assert reserved >= 2**28
    assert of_process is None or of_process > 2**28, "with CUDA's own"
    now = device.usable_memory(GPU)
    assert usable is not None
    assert now is not None
    assert now == pytest.approx(usable, rel=0.05), "what it holds itself may be planned with"
    assert device.usable_memory(GPU, 4) == pytest.approx((now - reserved) / 4 + reserved, rel=0.05)
    del block
    assert device.allocated_memory(GPU) == before


def test_results_tell_what_they_were_measured_with() -> None:
    device.set_arithmetic(GPU, tf32=False, cudnn_benchmark=False)
    told = device.versions(GPU)
    assert all(told[name] for name in ("cuda", "cudnn", "nccl", "driver"))
    assert told["power_limit_watts"] > 50
    assert told["tf32"] == {"products": False, "convolutions": False}


def test_generators_are_put_back() -> None:
    with device.preserved_generator(GPU):
        device.seed_generator(GPU, 3)
        first = torch.rand(4, device=GPU)
    states = device.generator_states(GPU)
    expected = torch.rand(4, device=GPU), torch.rand(4)
    device.set_generator_states(GPU, states)
    assert torch.equal(torch.rand(4, device=GPU), expected[0])
    assert torch.equal(torch.rand(4), expected[1])
    with device.preserved_generator(GPU):
        device.seed_generator(GPU, 3)
        assert torch.equal(torch.rand(4, device=GPU), first)


def test_fp32_is_fp32_unless_tf32_is_asked_for() -> None:
    """Of convolutions and of products, by their distance from float64."""
    image, kernel = torch.randn(8, 64, 32, 32, device=GPU), torch.randn(64, 64, 3, 3, device=GPU)
    matrix = torch.randn(512, 512, device=GPU)

    def errors() -> list[float]:
        pairs = [
            (F.conv2d(image, kernel), F.conv2d(image.double(), kernel.double())),
            (matrix @ matrix, matrix.double() @ matrix.double()),
        ]
        return [((found - exact).norm() / exact.norm()).item() for found, exact in pairs]

    try:
        device.set_arithmetic(GPU, tf32=True, cudnn_benchmark=False)
        rough = errors()
    finally:
        device.set_arithmetic(GPU, tf32=False, cudnn_benchmark=False)
    assert max(errors()) < 2e-6
    if torch.cuda.get_device_capability(GPU) >= (8, 0):
        assert min(rough) > 1e-5


def test_a_snapshot_keeps_its_pinned_memory() -> None:
    snapshot, tensor = Snapshot(GPU), torch.zeros(2**20, device=GPU)
    first = snapshot.take({"a": tensor})["a"]
    torch.cuda._sleep(LONG)
    tensor.fill_(1)
    second = snapshot.take({"a": tensor})["a"]
    assert first.is_pinned()
    assert second.data_ptr() == first.data_ptr()
    tensor.fill_(2)
    assert bool((second == 1).all())
