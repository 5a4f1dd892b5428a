"""What the harness trains: networks, a batch, and for `emulated` how long each piece sleeps."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidpar import Cascade, Compute
from sidpar.cascade.duplicate import duplicate
from sidpar.models.emulated import emulated
from sidpar.models.plain import plain_cnn, plain_mlp
from sidpar.models.simple_cnn import simple_cnn
from sidpar.models.wide_mlp import wide_mlp

IMAGES = {"simple_cnn": (3, 32, 32), "wide_mlp": (3, 32, 32), "digits": (1, 8, 8)}
"""`digits` is the demo's: SimpleCNN on images so small that everything else shows."""
CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """Networks to compare, and the batch to compare them on."""

    name: str
    networks: dict[str, Callable[[], Cascade]]
    """`cascade`, and where there are such, others of the same cost: `plain`, for backpropagation alone, and
    `recomputing`, whose extractor keeps no activations. Each call gives a copy of its own."""
    x: Tensor
    y: Tensor
    compute: Compute
    conditions: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that describe a workload."""
    parser.add_argument("--workload", choices=["emulated", "simple_cnn", "wide_mlp", "digits"], default="emulated")
    parser.add_argument("--refiners", type=int, help="L; by default 2 per rank")
    parser.add_argument("--batch", type=int, default=256, help="global batch B")
    add_details(parser)


def add_details(parser: argparse.ArgumentParser) -> None:
    """Those of them that have one value for all sizes."""
    parser.add_argument("--width", type=int, default=1024, help="wide_mlp: hidden units of a refiner")
    parser.add_argument("--refiner-ms", type=float, default=100.0, help="emulated: one refiner's forward on the batch")
    parser.add_argument(
        "--extractor-ms", type=float, default=20.0, help="emulated: the extractor's forward on the batch"
    )
    parser.add_argument("--time-scale", type=float, default=1.0, help="emulated: multiplies both")
    parser.add_argument("--autocast", choices=["none", "bf16"], default="none", help="not emulated")


def make(arguments: argparse.Namespace, num_ranks: int) -> Workload:
    """The workload of a command line."""
    num_refiners = arguments.refiners or 2 * num_ranks
    batch = arguments.batch
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (batch,), generator=generator)
    conditions: dict[str, Any] = {"num_refiners": num_refiners, "batch_size": batch}
    if arguments.workload == "emulated":
        refiner, extractor = (arguments.time_scale * ms for ms in (arguments.refiner_ms, arguments.extractor_ms))
        conditions |= {
            "refiner_forward_ms": refiner,
            "extractor_forward_ms": extractor,
            "backward": "twice the forward",
        }
        seconds = {"refiner_seconds": refiner / 1000 / batch, "extractor_seconds": extractor / 1000 / batch}
        networks = {"cascade": drawn_once(lambda: emulated(num_refiners, CLASSES, **seconds))}
        x = torch.randn(batch, 32, generator=generator)
        return Workload("emulated", networks, x, y, Compute(), conditions)
    image = IMAGES[arguments.workload]
    x = torch.randn(batch, *image, generator=generator)
    compute = Compute(autocast=arguments.autocast, channels_last=arguments.workload == "simple_cnn")
    conditions |= {"image": list(image), "autocast": arguments.autocast}
    if arguments.workload != "wide_mlp":
        cascade = drawn_once(lambda: simple_cnn(image, CLASSES, num_refiners))
        networks = {
            "cascade": cascade,
            "plain": drawn_once(lambda: plain_cnn(image, CLASSES, num_refiners)),
            "recomputing": lambda: recomputing(cascade()),
        }
        return Workload(arguments.workload, networks, x, y, compute, conditions)
    width = arguments.width
    networks = {
        "cascade": drawn_once(lambda: wide_mlp(image, CLASSES, num_refiners, width=width)),
        "plain": drawn_once(lambda: plain_mlp(image, CLASSES, num_refiners, width=width)),
    }
    return Workload("wide_mlp", networks, x, y, compute, conditions | {"width": width})


def drawn_once(build: Callable[[], Cascade]) -> Callable[[], Cascade]:
    """Copies of one network, which stays in host memory. Random weights come from one serial generator, which takes
    several times as long as a copy, and a comparison needs a hundred of them."""
    original = cache(build)
    return lambda: duplicate(original())


class Recomputing(nn.Module):
    """Layers that keep their input alone, and run once more before their backward."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x, use_reentrant=False, preserve_rng_state=False)


def recomputing(cascade: Cascade) -> Cascade:
    """The same cascade with such an extractor."""
    return Cascade(Recomputing(cascade.extractor), list(cascade.refiners), cascade.num_classes)
