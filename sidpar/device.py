"""Where CPU and CUDA differ: memory, generators, names. Besides, only `runtime.py` chooses a device and sets it."""

import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def reset_peak_memory(device: torch.device) -> None:
    """Start a new window for `peak_memory`; on CPU the operating system keeps one window per process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the CUDA allocator's peak since the last reset, or the process's peak resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device: torch.device) -> None:
    """Wait for everything that was queued on the device; only at the edges of a timed window."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """A name for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU ({capability}), {torch.get_num_threads()} threads per rank"


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout on this device draws from. Not torch.manual_seed, which costs 60 times as much
    because it visits every kind of device."""
    _default_generator(device).manual_seed(seed)


@contextmanager
def preserved_generator(device: torch.device) -> Iterator[None]:
    """Put the device's generator back afterwards, so that a user's own random numbers are not disturbed."""
    generator = _default_generator(device)
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
