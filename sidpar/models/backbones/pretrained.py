"""Weights that a network starts from, out of a local file, and parts of it that are not trained."""

import logging
import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sidpar.errors import UsageError

_log = logging.getLogger(__name__)
_WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Under which keys training programs keep the weights in their checkpoints."""
_FEW = 5


def load_pretrained(network: nn.Module, file: str | Path, num_classes: int) -> None:
    """Fill a network from a file of weights by name: .safetensors, or what torch.save wrote, of which nothing but
    tensors is unpickled. A classifier of another number of classes keeps its initial weights; the log names it.

    Raises UsageError for a file that cannot be read, and for missing, unexpected or unfitting tensors.
    """
    path = Path(file)
    found, own = _without_prefix(_read(path), network.state_dict()), network.state_dict()
    # Tensors with a row for each class: of a classifier, its weight and bias.
    others = [
        name
        for name, tensor in found.items()
        if name in own
        and own[name].dim() > 0
        and len(own[name]) == num_classes
        and tensor.shape[1:] == own[name].shape[1:]
        and tensor.dim() > 0
        and len(tensor) != num_classes
    ]
    if others:
        classes = len(found[others[0]])
        _log.info(f"{path} is for {classes} classes, not {num_classes}: {', '.join(others)} begin anew")
    kept = {name: tensor for name, tensor in found.items() if name not in others}
    unfitting = [name for name, tensor in kept.items() if name in own and tensor.shape != own[name].shape]
    if unfitting:
        name = unfitting[0]
        raise UsageError(
            f"{path}: {name} has the shape {list(kept[name].shape)}, but {list(own[name].shape)} in the network: give "
            "weights of the same network, for images with as many channels"
        )
    # Older files have no counts of batch norm's batches, which change nothing that is learned.
    missing = [n for n in own if n not in kept and n not in others and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in kept if name not in own]
    if missing or unexpected:
        raise UsageError(
            f"{path} does not hold the weights of this network: {_named('missing', missing)}"
            f"{_named('not in the network', unexpected)}give a file of the same network"
        )
    network.load_state_dict(kept, strict=False)


def freeze_modules(network: nn.Module, names: Sequence[str]) -> None:
    """Train no parameter of these modules. Raises UsageError for names that are none."""
    modules = dict(network.named_modules())
    for name in names:
        if not name or name not in modules:
            raise UsageError(
                f"model.freeze: the network has no module {name!r}; it has {', '.join(_outermost(modules))}"
            )
        modules[name].requires_grad_(False)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, KeyError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"model.weights={path} cannot be read ({text}): give a .safetensors file, or a state_dict as torch.save "
            "writes it"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(f"model.weights={path} holds no tensors by name: give a state_dict as torch.save writes it")
    return content


def _without_prefix(found: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Names as the network has them, where wrappers such as DistributedDataParallel and torch.compile put a word before
    each."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in found) and not any(name.startswith(prefix) for name in own):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return dict(found)


def _named(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{', '.join(names[:_FEW])}{more} {'is' if len(names) == 1 else 'are'} {what}; " if names else ""


def _outermost(modules: Collection[str]) -> list[str]:
    return [name for name in modules if name and "." not in name]
