"""The conditions of a measurement, which every result file states."""

import platform
import time
from typing import Any

import torch

from sidpar.distributed.device import describe, versions
from sidpar.version import source_commit


def conditions(device: torch.device) -> dict[str, Any]:
    """Where, when and with what a figure was measured."""
    return {
        "device": describe(device),
        "gpus": torch.cuda.device_count() if device.type == "cuda" else 0,
        "torch": torch.__version__,
        **versions(device),
        "python": platform.python_version(),
        "commit": source_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
