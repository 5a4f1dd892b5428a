"""How long the host waits for a kernel's first use while another stream waits, as for a message of another rank.

    python profiling/gpu/first_use.py --out profiling/results/gpu/first_use.json

CUDA loads kernels when they are first used, and may wait for the device to be idle then. Where what occupies the device
is itself a message that waits for another rank, which waits for this one, that is a deadlock. Each of several kinds of
first use is timed twice beside a stream that is busy for a while: the first time, and once more.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

CYCLES = 1_000_000_000
"""For which the other stream is busy: about half a second."""


def uses() -> dict[str, Callable[[], object]]:
    """Kernels of torch's own, of cuBLAS and cuDNN, a fresh allocation, and an optimizer's step."""
    matrix, image = torch.randn(256, 256, device="cuda"), torch.randn(8, 16, 32, 32, device="cuda")
    layer, convolution = nn.Linear(256, 256).cuda(), nn.Conv2d(16, 16, 3).cuda()
    layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
    adam = torch.optim.Adam(layer.parameters(), fused=True)
    return {
        "a kernel of torch": lambda: torch.atan(matrix),
        "a matrix product": lambda: matrix @ matrix,
        "a convolution": lambda: convolution(image),
        "its backward": lambda: convolution(image).sum().backward(),
        "an allocation of 1 GiB": lambda: torch.empty(2**30, dtype=torch.uint8, device="cuda"),
        "a step of Adam, fused": adam.step,
    }


def seconds_beside_a_busy_stream(use: Callable[[], object]) -> tuple[float, float]:
    """Of the host, until the use is queued; and for which the other stream was busy."""
    busy = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.cuda.stream(busy):
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]
    began = time.perf_counter()
    use()
    queued = time.perf_counter() - began
    torch.cuda.synchronize()
    return queued, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.cuda._sleep(1000)  # type: ignore[no-untyped-call]
    rows = []
    for name, use in uses().items():
        (first, busy), (again, _) = seconds_beside_a_busy_stream(use), seconds_beside_a_busy_stream(use)
        rows.append({"use": name, "first_seconds": first, "again_seconds": again, "busy_seconds": busy})
        print(f"{name:24} first {1000 * first:8.2f} ms, again {1000 * again:8.2f} ms, beside {1000 * busy:.0f} ms")
    environment = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    given.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
