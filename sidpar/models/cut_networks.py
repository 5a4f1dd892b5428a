"""Cascades of networks that are known by name: cut into extractor and refiners, or whole as an extractor."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.model import CUTTING, START
from sidpar.errors import UsageError
from sidpar.models.assembly import assemble
from sidpar.models.backbones.base import Backbone
from sidpar.models.backbones.libraries import library_network
from sidpar.models.backbones.pretrained import freeze_modules, load_pretrained
from sidpar.models.base import Model
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.models.cutting.cut import all_before, cut_backbone
from sidpar.seeding import seeded

Shape = tuple[int, int, int]
_REFINERS = 4
_HIDDEN = [256]
"""Hidden units of the paper's refiners."""


def _defaults() -> dict[str, Any]:
    """Of the settings of a cut, as `cut_backbone` has them, and of the weights to start from."""
    parameters = inspect.signature(cut_backbone).parameters
    return {name: parameters[name].default for name in CUTTING} | dict.fromkeys(START)


def cut_model(backbone: Backbone) -> Model:
    """It, cut."""
    build = partial(_cut, f"model.name={backbone.name}", backbone.build)
    reads = {**backbone.sizes, **_defaults()}
    return Model(backbone.name, build, num_refiners=_REFINERS, reads=reads, takes_options=backbone.build)


def library_model(name: str) -> Model:
    """A network of a library, cut; `name` is as model.backbone has it."""
    network = partial(library_network, name)
    build = partial(_cut, f"model.backbone={name}", network)
    return Model(name, build, num_refiners=_REFINERS, reads=_defaults(), takes_options=network)


def extractor_model(backbone: Backbone) -> Model:
    """It as an extractor, all but its classifier, with the paper's refiners on its pooled features [B, D]."""
    reads = {**backbone.sizes, **dict.fromkeys(START)}
    return Model(backbone.name, partial(_whole, backbone), reads=reads, takes_options=backbone.build)


def _cut(
    named: str,
    build: Callable[..., nn.Module],
    image_shape: Shape,
    num_classes: int,
    num_refiners: int,
    *,
    seed: int = 0,
    points: Sequence[str] | None = None,
    **settings: Any,
) -> Cascade:
    """Initial weights depend on the seed, the network and the cut, never on ranks."""
    cutting = {name: settings.pop(name) for name in CUTTING if name in settings}
    with _whose(named, image_shape):
        network = _network(build, image_shape, num_classes, seed, **settings)
        with seeded(seed, "heads"):
            return cut_backbone(
                network,
                points,
                num_classes=num_classes,
                sample=torch.zeros(1, *image_shape),
                num_refiners=num_refiners,
                **cutting,
            )


def _whole(
    backbone: Backbone, image_shape: Shape, num_classes: int, num_refiners: int, *, seed: int = 0, **settings: Any
) -> Cascade:
    with _whose(f"model.extractor={backbone.name}", image_shape):
        network = _network(backbone.build, image_shape, num_classes, seed, **settings)
        extractor = all_before(network, backbone.classifier, torch.zeros(1, *image_shape), num_classes)
    width = next(network.get_submodule(backbone.classifier).parameters()).shape[1]

    def refiner() -> nn.Module:
        return ConcatRefiner(width, _HIDDEN, num_classes)

    return assemble(lambda: extractor, refiner, num_classes, num_refiners, seed)


def _network(
    build: Callable[..., nn.Module],
    image_shape: Shape,
    num_classes: int,
    seed: int,
    *,
    weights: str | None = None,
    freeze: Sequence[str] | None = None,
    **settings: Any,
) -> nn.Module:
    """The network with the weights that it starts from."""
    with seeded(seed, "backbone"):
        network = build(image_shape, num_classes, **settings)
    if weights is not None:
        load_pretrained(network, weights, num_classes)
    freeze_modules(network, freeze or ())
    return network


@contextmanager
def _whose(named: str, image_shape: Shape) -> Iterator[None]:
    """Say in each refusal of which network it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{named}, images {list(image_shape)}: {error}") from error
