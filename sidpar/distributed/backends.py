"""Which device a rank computes on, and by which backend ranks talk."""

import platform

import torch

from sidpar.config.groups.choices import Backend, DeviceKind
from sidpar.errors import UsageError


def choose_device(kind: DeviceKind, local_rank: int) -> torch.device:
    """This rank's device; ranks of a node share GPUs where there are not enough."""
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError("device=cuda, but torch sees no CUDA device here: use device=cpu, or run on a GPU machine")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def gpu_identity(device: torch.device) -> str | None:
    """A name for this rank's GPU that no other GPU has. A device index is none, where each task sees only its own
    GPU."""
    if device.type != "cuda":
        return None
    return f"{platform.node()} {torch.cuda.get_device_properties(device).uuid}"


def choose_backend(backend: Backend, gpus: list[str | None]) -> str:
    """The backend of a job. `gpus` is the identity of every rank's GPU. NCCL needs one GPU per rank."""
    shared = sorted({gpu for gpu in gpus if gpu is not None and gpus.count(gpu) > 1})
    if backend == "nccl" and shared:
        raise UsageError(
            f"backend=nccl needs one GPU per rank, but the {len(gpus)} ranks share {len(set(gpus))} GPUs (such as "
            f"{shared[0]}): start fewer ranks per node, or use backend=gloo"
        )
    if backend == "auto":
        return "gloo" if shared or None in gpus else "nccl"
    return backend
