"""Points, what crosses them, and every way in which a network cannot be cut as one wishes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet

from sidpar import Cascade, Runtime, Stage, UsageError, cut_backbone
from sidpar.cascade.specs import Skeleton
from sidpar.models.backbones.resnet import ResNet18
from sidpar.models.backbones.vit import vit_tiny
from sidpar.models.cutting.points import Points, balanced
from tests.models.cutting import awkward
from tests.models.cutting.awkward import CLASSES
from tests.models.cutting.families import end_to_end, of_the_network


def resnet(width: int = 4) -> nn.Module:
    return ResNet18((3, 16, 16), CLASSES, width=width)


IMAGES = torch.zeros(1, 3, 16, 16)
VECTORS = torch.zeros(1, 6)


def cut(network: nn.Module, *points: str, **settings: Any) -> Cascade:
    return cut_backbone(network, points, num_classes=CLASSES, **{"sample": VECTORS, "belief": "none"} | settings)


def test_points_of_a_residual_network_are_its_blocks() -> None:
    """None lies within a block, where the shortcut is alive."""
    blocks = [f"layer{stage}{block}" for stage in (1, 2, 3, 4) for block in ("", ".1")]
    points = Points(resnet())
    assert points.names == ["bn1", "relu", *blocks, "avgpool", "flatten", "fc"]
    assert points.layers == [*blocks, "fc"]


def test_the_extractor_is_taken_apart_for_pipelines() -> None:
    cascade = cut(resnet(), "layer3", "layer4.1", sample=IMAGES)
    assert type(cascade.extractor) is nn.Sequential
    first = [next(iter(dict(piece.named_parameters()))) for piece in cascade.extractor]
    assert first == ["conv1.weight", *(f"layer{k}.{j}.conv1.weight" for k in (1, 2) for j in (0, 1))]
    own = of_the_network(dict(cascade.named_parameters()))
    assert list(own) == [name for name, _ in resnet().named_parameters()], "in their order, under their names"


@pytest.mark.parametrize(("reads_features", "readers"), [(False, {0}), (True, {0, 1})])
def test_who_reads_the_features(reads_features: bool, readers: set[int]) -> None:
    """So those of a root extractor stay on its rank by default."""
    cascade = cut(resnet(), "layer3", "layer4.1", sample=IMAGES, reads_features=reads_features)
    assert Skeleton(cascade).reads(IMAGES) == (frozenset(readers),)


def test_tokens_are_read_by_the_first_refiner_alone() -> None:
    network = vit_tiny((3, 16, 16), CLASSES, width=64, depth=3)
    cascade = cut_backbone(network, num_refiners=2, num_classes=CLASSES, sample=IMAGES)
    assert Skeleton(cascade).reads(IMAGES) == (frozenset({0}),)


@pytest.mark.parametrize(
    ("costs", "num_refiners", "share", "expected"),
    [
        ([1, 1, 1, 1], 3, None, [0, 1, 2]),
        ([1, 1, 1, 1, 1, 1], 2, None, [1, 3]),
        ([1, 1, 1, 1, 1, 1, 1, 1], 2, 0.5, [3, 5]),
        ([1, 1, 1, 1, 0.01], 2, None, [0, 2]),
        ([1, 1, 1, 1, 0.01], 4, None, [0, 1, 2, 3]),
        ([10, 1, 1], 1, 0.1, [0]),
        ([1, 1, 10], 2, 0.9, [0, 1]),
    ],
)
def test_refiners_cost_alike(costs: list[float], num_refiners: int, share: float | None, expected: list[int]) -> None:
    """The share is met as far as there are points; a classifier alone makes a refiner only where there is no other."""
    assert balanced(costs, num_refiners, share) == expected


def test_half_of_the_network_as_extractor() -> None:
    """Blocks of 16 x 16, 8 x 8, 4 x 4 and 2 x 2 positions with doubled channels cost alike."""
    cascade = cut_backbone(resnet(), num_classes=CLASSES, sample=IMAGES, num_refiners=2, extractor_share=0.5)
    starts = [next(iter(dict(refiner.layers.named_parameters()))) for refiner in cascade.refiners]
    assert starts == ["layer3.0.conv1.weight", "layer4.0.conv1.weight"]


def test_modes_constants_buffers_and_parameters_of_the_outer_forward() -> None:
    torch.manual_seed(1)
    network = awkward.ByMode().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    cascade = cut(network, "b", "c", sample=VECTORS.double())
    assert cascade.state_dict().keys() >= {"refiners.0.layers.scale"}
    assert dict(cascade.named_buffers()).keys() == {"refiners.0.layers.shift", "refiners.0.layers._tensor_constant0"}
    assert not hasattr(network, "_tensor_constant0")
    for training in (True, False, True):
        network.train(training)
        cascade.train(training)
        torch.manual_seed(2)
        expected = network(x)
        torch.manual_seed(2)
        assert torch.equal(end_to_end(cascade, x), expected)


def test_a_connection_that_is_divided_travels_where_that_is_wished() -> None:
    """The newest value is the hidden activation, of which the head makes a belief."""
    network = awkward.Skip().double()
    x = torch.randn(5, 6, dtype=torch.float64)
    cascade = cut(network, "b", "c", "d", sample=VECTORS.double(), carry=True)
    assert torch.equal(end_to_end(cascade, x), network(x))
    assert [len(state) for state in cascade.states(x)] == [1, 3, 2, 1]
    features = cascade.extractor(x)
    _, hidden, carried = cascade.refiners[0](features, x.new_zeros(5, CLASSES))
    assert torch.equal(carried, features)
    assert torch.equal(hidden, network.b(features).tanh())


def test_an_input_that_is_left_alone() -> None:
    network = awkward.Mask()
    x = torch.randn(5, 6)
    assert torch.equal(end_to_end(cut(network, "b"), x), network(x))


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (
        lambda: cut(awkward.Layers(), "e"),
        "point 'e' is no module of the network; it can be cut before b, c, d",
    ),
    "empty name": (lambda: cut(awkward.Layers(), ""), "point '' is no module of the network"),
    "none": (lambda: cut(awkward.Layers()), "a cut needs at least one point; it can be cut before b, c, d"),
    "nothing before it": (lambda: cut(awkward.Layers(), "a"), "point 'a' has no layer with weights before it"),
    "twice called": (lambda: cut(awkward.Twice(), "b"), "point 'b' is called 2 times in a forward"),
    "not called": (lambda: cut(Unused(), "spare"), "point 'spare' is called 0 times in a forward"),
    "order": (
        lambda: cut(awkward.Layers(), "c", "b"),
        "points are c, b, but must lie one behind the other: the network calls them in the order b, c",
    ),
    "same place": (lambda: cut(resnet(), "layer2", "layer2.0", sample=IMAGES), "must lie one behind the other"),
    "divided": (
        lambda: cut(awkward.Skip(), "c"),
        "a cut before 'c' divides a connection: tanh_1, tanh are all read behind it, and one tensor travels from "
        "refiner to refiner; the nearest point that does is 'b', or let all of them travel, detached, with carry=true",
    ),
    "within a block": (
        lambda: cut(resnet(), "layer2.1.conv2", sample=IMAGES),
        "a cut before 'layer2.1.conv2' divides a connection: layer2_1_relu, layer2_0 are all read behind it, and one "
        "tensor travels from refiner to refiner; the nearest point that does is 'layer2.1'",
    ),
    "size": (
        lambda: cut(awkward.KeepsSize(), "b", carry=True),
        "a cut before 'b' divides the network where 2 is kept for later, for 2 rows, and only tensors [B, ...] travel",
    ),
    "looks at data": (
        lambda: cut(awkward.LooksAtData(), "b"),
        "the network cannot be traced by torch.fx, so it cannot be cut inside (awkward.py, line 50: symbolically "
        "traced variables cannot be used as inputs to control flow): move what looks at data into a module of its own",
    ),
    "looks at data inside": (
        lambda: cut(awkward.BranchInside(), "block.b"),
        "block (LooksAtData) cannot be traced by torch.fx, so it cannot be cut inside (awkward.py, line 50: "
        "symbolically traced variables cannot be used as inputs to control flow): choose a point outside of it in "
        "place of 'block.b'",
    ),
    "by type": (
        lambda: cut(awkward.ByType(), "b"),
        "in evaluation mode the network computes something else in one piece than in parts",
    ),
    "two inputs": (lambda: cut(awkward.TwoInputs(), "b"), "its forward takes several inputs, y besides the first one"),
    "auxiliary": (lambda: cut(awkward.Auxiliary(), "b"), "the network returns a tuple, but a cascade is cut from one"),
    "classes": (
        lambda: cut_backbone(awkward.Layers(), ["b"], num_classes=7, sample=VECTORS),
        "the network returns [2, 3] for 2 inputs, but with num_classes=7 it must return logits [2, 7]: give it another",
    ),
    "sample": (
        lambda: cut(awkward.Layers(), "b", sample=torch.zeros(1, 5)),
        "the network does not take a sample of shape [2, 5]: ",
    ),
    "no batch": (lambda: cut(awkward.Layers(), "b", sample=torch.zeros(6)), "sample must be an input with its batch"),
    "too many": (
        lambda: cut_backbone(awkward.Layers(), num_classes=CLASSES, sample=VECTORS, num_refiners=4),
        "the network has 3 layers or blocks before which it can be cut (b, c, d), fewer than num_refiners=4: set at mo",
    ),
    "no number": (
        lambda: cut_backbone(awkward.Layers(), num_classes=CLASSES, sample=VECTORS),
        "give points, or num_refiners of at least 1, got num_refiners=None",
    ),
    "share": (
        lambda: cut_backbone(awkward.Layers(), num_classes=CLASSES, sample=VECTORS, num_refiners=1, extractor_share=1),
        "extractor_share must lie in (0, 1), got 1",
    ),
    "both": (
        lambda: cut(awkward.Layers(), "b", "c", num_refiners=3),
        "2 points make 2 refiners and an extractor that ends at the first one: leave out num_refiners and extractor_sh",
    ),
}


class Unused(awkward.Layers):
    """A layer that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    make, message = REFUSALS[case]
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_many_connections_name_the_point_that_would_do() -> None:
    """A dense block hands everything on."""
    network = DenseNet(4, (2, 2), 8, num_classes=CLASSES)
    with pytest.raises(UsageError, match="the nearest point that does is 'features.denseblock1'"):
        cut(network, "features.denseblock1.denselayer2", sample=torch.zeros(1, 3, 32, 32))


def test_a_layer_on_both_sides_is_refused_where_it_is_placed() -> None:
    with pytest.raises(UsageError, match="refiners.1.layers.a.bias is also a parameter of extractor"):
        Stage(cut(awkward.Shared(), "b", "c"), Runtime.single("cpu"))


def test_the_number_of_a_layer_of_a_sequential() -> None:
    layers: list[nn.Module] = [nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, CLASSES)]
    network = nn.Sequential(*layers)
    x = torch.randn(2, 6)
    cascade = cut_backbone(network, [2, 4], num_classes=CLASSES, sample=x, belief="none")
    assert torch.equal(end_to_end(cascade, x), network(x))
