"""`model.builder`: imports and calls the user's function, and checks the network that it returns."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sidpar.cascade.cascade import Cascade
from sidpar.cascade.module_state import undone
from sidpar.cascade.specs import Skeleton
from sidpar.config.groups.checks import check_options
from sidpar.config.groups.model import BUILDER_KEYWORDS, ModelConfig
from sidpar.errors import UsageError, reason
from sidpar.seeding import seeded, undisturbed

_ROWS = 3
"""Of random images: batch norm needs two."""


def build_own(model: ModelConfig, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> Cascade:
    """The cascade that `model.builder` returns, its random numbers drawn under the run's seed.

    Raises UsageError for a builder that cannot be found or called, and for a network that does not fit the data. An
    error in the user's own code is raised as it is, with a note that names the builder.
    """
    name = str(model.builder)
    build = _find(name)
    arguments = {
        **dict(zip(BUILDER_KEYWORDS, (image_shape, num_classes, model.refiners, seed), strict=True)),
        **(model.options or {}),
    }
    _check_call(name, build, arguments, model.options or {})
    with seeded(seed, "builder"), _whose(f"in model.builder={name}, called with {arguments}"):
        cascade = build(**arguments)
    _check_cascade(name, cascade, model.refiners, image_shape, num_classes)
    return cascade  # type: ignore[no-any-return]  # checked


def _find(name: str) -> Callable[..., Any]:
    """The function that a name of the form package.module:function stands for."""
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)  # where `python -m` would look, also from a script that lies elsewhere
    try:
        with _whose(f"on importing model.builder={name}"):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module was found, and misses another one
        raise UsageError(
            f"model.builder={name}: there is no module {error.name}, neither in {folder} nor installed nor on "
            "PYTHONPATH: start from the folder that holds it, or correct the name"
        ) from error
    if not hasattr(module, function_name):
        raise UsageError(
            f"model.builder={name}: {module.__file__} has no {function_name}: define it there, or correct the name"
        )
    function = getattr(module, function_name)
    if not callable(function):
        raise UsageError(
            f"model.builder={name} is a {type(function).__name__}, but must be a function that returns a sidpar.Cascade"
        )
    return function  # type: ignore[no-any-return]  # checked


def _check_call(name: str, build: Callable[..., Any], arguments: dict[str, Any], options: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(build)
    except ValueError:  # of a function that is not written in Python: the call itself will tell
        return
    check_options("model.options", options, f"model.builder={name}", build, BUILDER_KEYWORDS)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UsageError(
            f"model.builder={name} has the signature {signature}, but is called by keyword with "
            f"{', '.join(arguments)}: {error}"
        ) from error


def _check_cascade(
    name: str, cascade: Any, num_refiners: int, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    if not isinstance(cascade, Cascade):
        raise UsageError(f"model.builder={name} returns a {type(cascade).__name__}, but must return a sidpar.Cascade")
    if cascade.num_classes != num_classes:
        raise UsageError(
            f"model.builder={name} returns a cascade with num_classes={cascade.num_classes}, but the dataset has "
            f"{num_classes}: use the num_classes that it is given"
        )
    if len(cascade.refiners) != num_refiners:
        raise UsageError(
            f"model.builder={name} returns {len(cascade.refiners)} refiners, but model.num_refiners={num_refiners}: "
            "use the num_refiners that it is given, or set model.num_refiners"
        )
    try:
        belief = _belief_shape(cascade, image_shape)
    except UsageError as error:
        raise UsageError(f"model.builder={name}, images {list(image_shape)}: {error}") from error
    for parameter_name, parameter in cascade.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UsageError(
                f"model.builder={name}: {parameter_name} is {parameter.dtype}, but images and features are "
                "torch.float32: return the network in float32; compute.autocast=bf16 computes in bfloat16"
            )
    if belief is not None and belief != (num_classes,):
        raise UsageError(
            f"model.builder={name}, images {list(image_shape)}: the beliefs are [B, {', '.join(map(str, belief))}], "
            f"but an image has one label, so they must be [B, {num_classes}]: return a first feature of two dimensions"
        )


def _belief_shape(cascade: Cascade, image_shape: tuple[int, int, int]) -> tuple[int, ...] | None:
    """Of a belief, without the batch. None if that is not known before the first batch. Raises UsageError."""
    skeleton = Skeleton(cascade)
    try:
        return skeleton.specs(torch.empty(1, *image_shape, device="meta")).states[0][0].shape
    except UsageError as inferred:  # perhaps since a forward looks at data
        try:
            with undisturbed(torch.device("cpu")), undone(cascade, parameters=True), torch.no_grad():
                first, *_ = cascade.states(torch.randn(_ROWS, *image_shape))
        except Exception as error:
            if torch.accelerator.is_available():  # it may have kernels for that only
                return None
            raise UsageError(f"{inferred} (and with random images: {reason(error)})") from error
        return tuple(first[0].shape[1:])


@contextmanager
def _whose(note: str) -> Iterator[None]:
    """Add a note to any error that passes. Raises UsageError instead of SystemExit, or the run would end as if it had
    succeeded."""
    try:
        yield
    except SystemExit as error:
        raise UsageError(
            f"sys.exit({error.code!r}) was called {note}: let it return a sidpar.Cascade, or raise an error that says "
            "why it cannot"
        ) from error
    except Exception as error:
        error.add_note(note)
        raise
