"""Loads a trained network from its run folder, in one process. Reads config.yaml and weights.safetensors; nothing is
unpickled."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sidpar.cascade.cascade import Cascade
from sidpar.data.preprocessing import Preprocessing
from sidpar.errors import UsageError
from sidpar.models.network import build_network
from sidpar.runs.run_folder import CONFIG, WEIGHTS, read_config

Shapes = dict[str, list[int]]


def load(run: str | Path, device: torch.device | str = "cpu") -> Cascade:
    """The cascade that a run has trained, in evaluation mode, in fp32 and on one device.

    It takes images [B, channels, H, W] as `load_preprocessing(run).normalise` gives them. A run with `model.builder`
    imports the builder.

    Args:
        run: the run folder.
        device: where the cascade will be.

    Raises:
        UsageError: the run is not complete, or its weights do not fit its configuration.
    """
    folder = Path(run)
    config, preprocessing = read_config(folder), load_preprocessing(folder)
    trained = replace(config, model=replace(config.model, weights=None))  # not those that it started from
    cascade = build_network(trained, preprocessing.image_shape, preprocessing.num_classes)
    path = folder / WEIGHTS
    with safe_open(path, framework="pt", device="cpu") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a dict
        _compare({name: list(tensor.shape) for name, tensor in cascade.state_dict().items()}, shapes, path)
        cascade.load_state_dict({name: file.get_tensor(name) for name in shapes})
    return cascade.eval().to(device)


def load_preprocessing(run: str | Path) -> Preprocessing:
    """The preprocessing of a run: shape and normalisation of images, names of classes.

    Its `normalise` takes images [B, channels, H, W] with values 0..white, as `read_image` gives them.

    Args:
        run: the run folder.

    Raises:
        UsageError: the run is not complete.
    """
    read_config(Path(run))
    path = Path(run) / WEIGHTS
    if not path.exists():
        raise UsageError(
            f"run {run} is not complete, it has no {WEIGHTS}: resume it with the command that started it, or wait"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}): it is truncated, or not a safetensors file") from error
    if "preprocessing" not in header:
        raise UsageError(
            f"{path} does not say which images it was trained on: its header lacks `preprocessing`, which "
            "sidpar.train writes; use the file that the run wrote"
        )
    try:
        return Preprocessing.from_json(header["preprocessing"])
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: `preprocessing` in its header cannot be read ({error})") from error


def _compare(expected: Shapes, found: Shapes, path: Path) -> None:
    """Name the first tensor in which a file differs from the network, in the network's order."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if expected.get(name) != found.get(name):
            here, there = (f"{shapes[name]}" if name in shapes else "no such parameter" for shapes in (expected, found))
            raise UsageError(
                f"{path} does not fit the network that {CONFIG} beside it describes: {name} is {there} in the file, "
                f"but {here} in the network; restore the file that the run wrote"
            )
