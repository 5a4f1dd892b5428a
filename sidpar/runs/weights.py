"""The weights of the whole cascade in one file, under global names: `extractor.…`, `refiners.3.…`."""

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sidpar.errors import StorageError
from sidpar.messages.transport import Transport
from sidpar.runs.atomic_files import publish
from sidpar.stages.stage import Stage


def gather_weights(stage: Stage) -> dict[str, Tensor]:
    """The cascade's whole state on rank 0, on the CPU; an empty dict on the other ranks. All ranks call it. Replicas
    have equal weights, so only the first one's are fetched."""
    if stage.runtime.replica > 0:
        return {}
    mine = stage.state_dict()
    rank = stage.runtime.rank
    transport = Transport(stage.runtime) if stage.runtime.world_size > 1 else None
    gathered: dict[str, Tensor] = {}
    # One name after the other in the same order on all ranks; only the owner and rank 0 exchange a message for it.
    for name, skeleton in stage.skeleton.state_dict().items():
        owner = stage.holders(name)[0]
        tensor = mine.get(name)
        if transport is not None and owner != 0 and rank in (0, owner):
            buffer = torch.empty_like(skeleton, device=stage.runtime.wire_device) if tensor is None else tensor
            with stage.runtime.during(f"fetch {name} from rank {owner} to rank 0"):
                tensor = transport.fetch(buffer, owner)
        if rank == 0:
            assert tensor is not None
            gathered[name] = tensor.detach().cpu().clone().contiguous()  # tensors tied to each other become two
    return gathered


def save_weights(stage: Stage, path: Path, header: dict[str, str] | None = None) -> None:
    """Write the weights of the whole cascade to a safetensors file, from rank 0. All ranks call it.

    Args:
        stage: this rank's share of the cascade.
        path: the file.
        header: strings for the file's header.

    Raises:
        StorageError: on rank 0, where the file cannot be written, for example because the disk is full.
    """
    weights = gather_weights(stage)
    if stage.runtime.rank == 0:
        temporary = path.with_name(f".{path.name}")
        try:
            save_file(weights, temporary, header)
            shutil.copymode(path.parent, temporary)
            temporary.chmod(temporary.stat().st_mode & 0o666)  # safetensors writes for the owner alone
            publish(temporary, path)
        except (OSError, SafetensorError) as error:
            raise StorageError(path, OSError(str(error))) from error
