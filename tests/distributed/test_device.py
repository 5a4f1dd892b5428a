"""What differs between CPU and CUDA, as far as it can be told without a GPU; `tests/gpu` tells the rest."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar.distributed import device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Calls(list[Any]):
    """Stands for a function of torch.cuda: keeps its arguments, gives a value."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value

    def __call__(self, *arguments: Any) -> Any:
        self.append(arguments)
        return self.value


class Stream:
    """Counts how often the host waits for it."""

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


def test_ranks_that_share_a_gpu_plan_with_their_part_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", Calls((600, 1000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", Calls(50))
    assert device.usable_memory(GPU) == 600 + 50
    assert device.usable_memory(GPU, sharers=4) == 150 + 50
    monkeypatch.setattr(torch.cuda, "mem_get_info", Calls((990, 1000)))
    assert device.usable_memory(GPU) == 900 + 50
    assert device.usable_memory(CPU, sharers=4) is None


def test_only_a_gpu_counts_what_tensors_occupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", Calls(70))
    assert (device.allocated_memory(GPU), device.allocated_memory(CPU)) == (70, 0)


def test_waiting_for_what_is_queued_is_no_wait_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, whole = Stream(), Calls()
    monkeypatch.setattr(torch.cuda, "current_stream", Calls(stream))
    monkeypatch.setattr(torch.cuda, "synchronize", whole)
    device.wait_for_queued(GPU)
    device.wait_for_queued(CPU)
    assert (stream.waits, whole) == (1, [])


def test_a_new_window_for_peaks_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is opened once an epoch, and what is given back has to be allocated anew."""
    given_back, reset = Calls(), Calls()
    monkeypatch.setattr(torch.cuda, "empty_cache", given_back)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    device.reset_peak_memory(GPU)
    assert (len(given_back), len(reset)) == (0, 1)
    device.give_back_unused(GPU)
    assert len(given_back) == 1


def arithmetic() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


@pytest.fixture
def torchs_own() -> Iterator[None]:
    before = arithmetic()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("torchs_own")
def test_arithmetic_is_the_same_for_convolutions_and_products() -> None:
    torchs = arithmetic()
    device.set_arithmetic(CPU, tf32=True, cudnn_benchmark=True)
    assert arithmetic() == torchs, "a process without a GPU changes nothing"
    for chosen in (True, False):
        device.set_arithmetic(GPU, tf32=chosen, cudnn_benchmark=not chosen)
        assert arithmetic() == (chosen, chosen, not chosen)


def test_the_host_does_not_wait_for_what_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def to(self: Tensor, *_: Any, **keywords: Any) -> Tensor:
        asked.append(keywords)
        return self

    monkeypatch.setattr(Tensor, "to", to)
    device.move(torch.zeros(1), GPU)
    assert asked == [{"non_blocking": True}]
