"""`model.backbone`: a network of torchvision or timm by its name there, with new weights. Nothing is downloaded."""

import importlib
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torchvision
from torch import nn

from sidpar.errors import UsageError, reason


def library_network(name: str, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> nn.Module:
    """The network `torchvision:NAME` or `timm:NAME` for images [channels, H, W].

    Args:
        options: keywords of the library's function: image_size of torchvision's ViTs, img_size of timm's.

    Raises UsageError if the library or the network is not there, or does not take these options.
    """
    library, _, network = name.partition(":")
    if library == "timm":
        return _timm(network, image_shape[0], num_classes, options)
    models = torchvision.models
    _check_name("torchvision", network, models.list_models(module=models))
    if image_shape[0] != 3:
        raise UsageError(
            f"torchvision's networks take images of 3 channels, but the dataset's have {image_shape[0]}: use a network "
            "of timm, one that comes with sidpar, or model.builder"
        )
    return _made(lambda: models.get_model(network, weights=None, num_classes=num_classes, **options), options)


def _timm(network: str, channels: int, num_classes: int, options: dict[str, Any]) -> nn.Module:
    timm = _import_timm()
    _check_name("timm", network, timm.list_models())
    given = {"num_classes": num_classes, "in_chans": channels, **options}
    return _made(lambda: timm.create_model(network, pretrained=False, **given), options)


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UsageError(
            "timm is not installed: pip install 'sidpar[timm]', or name a network of torchvision"
        ) from error


def _check_name(library: str, network: str, names: Sequence[str]) -> None:
    if network not in names:
        alike = get_close_matches(network, names) or list(names[:5])
        raise UsageError(f"{library} has no network {network!r} that classifies images; like it: {', '.join(alike)}")


def _made(make: Callable[[], nn.Module], options: dict[str, Any]) -> nn.Module:
    try:
        return make()
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(f"it cannot be made with model.options={options}: {reason(error)}") from error
