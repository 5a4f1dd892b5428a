"""Where CPU and CUDA differ: memory, generators, names. `backends.py` chooses a device, `runtime.py` sets it."""

import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynvml
import torch
from torch import Tensor

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

USABLE = 0.9
"""Share of a GPU's memory that may be planned with: the rest is CUDA's, NCCL's and the allocator's."""


def set_arithmetic(device: torch.device, *, tf32: bool, cudnn_benchmark: bool) -> None:
    """What this process computes fp32 with from now on. On a GPU, torch's own defaults are TF32 in convolutions and
    fp32 in matrix products; here both are the same.

    Args:
        tf32: products of fp32 numbers with mantissas of 10 bits, on tensor cores (Ampere and later).
        cudnn_benchmark: cuDNN times its algorithms for each new shape and takes the fastest, in place of choosing by
            heuristics. Which one that is, and so the rounding, may differ from run to run.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = cudnn_benchmark


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. From pinned memory the host does not wait for the copy; the work that is queued after
    it does, and pinned memory is not used anew before the copy is over."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def give_back_unused(device: torch.device) -> None:
    """Give back what CUDA's allocator holds unused, so that `peak_reserved` tells what is needed from now on. Waits for
    the device, and the next allocations are slow: not for a training loop."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new window for `peak_memory` and `peak_reserved`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_peak()


def peak_memory(device: torch.device) -> int:
    """Bytes since the last reset: the CUDA allocator's peak, or the peak of the process's resident set on CPU (where
    the system is not Linux, or does not let it be reset, since the process began)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(next(line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))) * 1024


def _forget_peak() -> None:
    """Linux: the peak of the resident set becomes its present size."""
    if os.access(_CLEAR_REFS, os.W_OK):
        _CLEAR_REFS.write_text("5")


def allocated_memory(device: torch.device) -> int:
    """Bytes that tensors occupy on a GPU now, by the CUDA allocator; 0 on CPU, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_reserved(device: torch.device) -> int | None:
    """Bytes that the CUDA allocator has taken from the device at most, since the last reset."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def usable_memory(device: torch.device, sharers: int = 1) -> float | None:
    """Bytes of a GPU that each of `sharers` ranks which compute on it may plan with: its part of what is free, besides
    what it holds already. None on CPU, where ranks share what there is."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return min(USABLE * total, free) / sharers + torch.cuda.memory_reserved(device)


def driver_memory(device: torch.device) -> int | None:
    """Bytes of the device that the driver accounts to this process (NVML); None on CPU, or where NVML does not tell."""
    if device.type != "cuda":
        return None
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(_nvml_handle(device))
    except pynvml.NVMLError:
        return None
    # In a container NVML may number processes as the host does; of a process alone on its GPU it is still ours.
    own = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    figures = own or ([processes[0].usedGpuMemory] if len(processes) == 1 else [])
    return figures[0] if figures else None


def _nvml_handle(device: torch.device) -> Any:
    """By identity: NVML numbers GPUs without regard to CUDA_VISIBLE_DEVICES. Raises NVMLError."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def synchronize(device: torch.device) -> None:
    """Wait for everything that was queued on the device, messages that wait for other ranks included; only at the edges
    of a timed window."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wait_for_queued(device: torch.device) -> None:
    """Wait for what this thread has queued on its current stream. Unlike `synchronize` not for messages under way,
    which end when other ranks come to them."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def head_start(device: torch.device, seconds: float) -> None:
    """Keep the current stream of a GPU busy for at least so long, while the host queues what comes after it."""
    if device.type == "cuda" and seconds > 0:
        with torch.cuda.device(device):
            torch.cuda._sleep(round(seconds * _CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]


_CYCLES_PER_SECOND = 2.5e9
"""More than any GPU's clock makes."""
Mark = torch.cuda.Event | float
"""A moment on a device: an event on its current stream, or the host's monotonic clock in seconds."""


def mark(device: torch.device) -> Mark:
    """This moment, in the device's own order of work; waits for nothing."""
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return event
    return time.perf_counter()


def seconds_between(start: Mark, end: Mark) -> float:
    """Seconds from one mark to another of the same device, which has passed both."""
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return float(start.elapsed_time(end)) / 1000
    assert isinstance(end, float)
    return end - start


def describe(device: torch.device) -> str:
    """A name for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU ({capability}), {torch.get_num_threads()} threads per rank"


def versions(device: torch.device) -> dict[str, Any]:
    """Of what computes and sends besides torch, and the settings of a GPU that change speed and rounding; empty on
    CPU."""
    if device.type != "cuda":
        return {}
    try:
        power_limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(_nvml_handle(device)) / 1000
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        driver, power_limit = None, None
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        "driver": driver,
        "power_limit_watts": power_limit,
        "tf32": {"products": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32},
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


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


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Of the host's generator, and of the device's where that is another one."""
    kinds = {"cpu": torch.device("cpu"), device.type: device}
    return {kind: _default_generator(each).get_state() for kind, each in kinds.items()}


def set_generator_states(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Back to what `generator_states` gave, as far as it is known of this kind of device."""
    for kind in {"cpu", device.type} & states.keys():
        _default_generator(torch.device("cpu") if kind == "cpu" else device).set_state(states[kind])


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
