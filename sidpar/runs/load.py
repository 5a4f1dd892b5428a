"""A trained network from its run folder, for one process: config.yaml and weights.safetensors, nothing unpickled."""

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
    """The cascade that a run has trained, in evaluation mode and fp32 on one device, whatever it was trained on.

    It takes images as `load_preprocessing(run).normalise` gives them. A run with `model.builder` imports the builder.
    Raises UsageError if the folder does not hold a whole run, or if its weights are not those of its configuration.
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
    """What a run's network was trained to see: shape and scale of images, names of classes. Raises UsageError."""
    read_config(Path(run))
    path = Path(run) / WEIGHTS
    if not path.exists():
        raise UsageError(
            f"run {run} is not complete, it has no {WEIGHTS}: resume it by the command that began it, or wait"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} cannot be read ({error}): it is truncated, or no safetensors file") from error
    if "preprocessing" not in header:
        raise UsageError(
            f"{path} says nothing of the images it was trained on: its header lacks `preprocessing`, which "
            "sidpar.train writes; take the file that the run wrote"
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
                f"{path} holds the weights of another network than {CONFIG} beside it describes: {name} is {there} in "
                f"the file, but {here} in the network; put back the file that belongs there"
            )
