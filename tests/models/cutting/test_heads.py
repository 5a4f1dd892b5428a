"""Heads, how the belief before enters, and what reads the features: shapes, costs and what they compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import Cascade, UsageError, cut_backbone
from sidpar.models.backbones.resnet import ResNet18
from sidpar.models.cutting.arithmetic import counted, shares_of_heads
from sidpar.models.cutting.heads import make_body
from sidpar.models.cutting.layouts import Hidden, find_layout
from tests.models.cutting.families import CLASSES, batch, built

IMAGE = Hidden((16, 8, 8), False, (32, 32))
LAST = Hidden((8, 8, 16), True, (32, 32))
TOKENS = Hidden((65, 16), True, (32, 32))
VECTOR = Hidden((16,), True, (32, 32))


def body(head: Any, hidden: Hidden, pool: Any = "mean", *, batch_norm: bool = True) -> nn.Module:
    return make_body(head, hidden, CLASSES, pool, batch_norm=batch_norm)


@pytest.mark.parametrize("hidden", [IMAGE, LAST, TOKENS, VECTOR], ids=str)
@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "strided", None])
def test_every_head_on_every_layout(head: Any, hidden: Hidden) -> None:
    if head in ("conv", "strided") and hidden is VECTOR:
        with pytest.raises(
            UsageError, match=f"head={head} needs the positions of an image, but a hidden activation is"
        ):
            body(head, hidden)
        return
    assert body(head, hidden)(torch.randn(2, *hidden.shape)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("head", "cost"),
    [
        ("linear", 16 * CLASSES),
        ("mlp", 16 * (16 + CLASSES)),
        ("conv", 9 * 16**2 * 64 + 16 * CLASSES),
        ("strided", 9 * 16 * 32 * 16 + 32 * CLASSES),  # 4.5 C^2 H W, to 4x4
    ],
)
def test_costs_are_as_documented(head: Any, cost: int) -> None:
    for hidden in (IMAGE, LAST):
        module = body(head, hidden)
        assert counted(lambda: module(torch.randn(1, *hidden.shape)))[1] == cost  # noqa: B023  # called at once


def test_large_images_are_halved_first_and_channels_have_a_limit() -> None:
    module = body("strided", Hidden((256, 56, 56), False, (224, 224)))
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [512, 512, 512]
    _, cost = counted(lambda: module(torch.randn(1, 256, 56, 56)))
    assert cost == 9 * (256 * 512 * 14**2 + 512**2 * 7**2 + 512**2 * 4**2) + 512 * CLASSES


def test_norms_follow_the_network() -> None:
    def kinds(*, batch_norm: bool) -> set[type]:
        return {type(layer) for layer in body("conv", IMAGE, batch_norm=batch_norm).modules()}

    assert nn.BatchNorm2d in kinds(batch_norm=True)
    assert nn.GroupNorm in kinds(batch_norm=False)
    assert nn.BatchNorm2d not in kinds(batch_norm=False)


def test_tokens_are_an_image_behind_those_before_it() -> None:
    """The class token is left out; a head on tokens is one on their image."""
    tokens, image = body("conv", TOKENS), body("conv", IMAGE)
    image.load_state_dict(tokens.state_dict())
    x = torch.randn(2, 16, 8, 8)
    as_tokens = torch.cat([torch.randn(2, 1, 16), x.flatten(2).transpose(1, 2)], 1)
    assert torch.allclose(tokens(as_tokens), image(x), atol=1e-6)
    assert torch.equal(body("linear", TOKENS, "class")[0](as_tokens), as_tokens[:, 0])
    assert torch.equal(body("linear", TOKENS)[0](as_tokens), as_tokens.mean(1))


@pytest.mark.parametrize(
    ("shape", "image", "channels", "grid"),
    [
        ((16, 8, 8), (32, 32), 16, (8, 8)),
        ((8, 8, 16), (32, 32), 16, (8, 8)),
        ((16, 3, 5), (11, 20), 16, (3, 5)),  # sides are halved with rounding
        ((197, 32), (224, 224), 32, (14, 14)),
        ((201, 32), (224, 224), 32, (14, 14)),  # four registers
        ((9, 32), (32, 64), 32, (2, 4)),
        ((12, 32), None, 32, None),
        ((100,), (8, 8), 100, None),
    ],
)
def test_layouts_are_found(
    shape: tuple[int, ...], image: tuple[int, int] | None, channels: int, grid: tuple[int, int] | None
) -> None:
    hidden = find_layout(shape, image, None, lambda: pytest.fail("proportions tell"))
    assert (hidden.channels, hidden.grid) == (channels, grid)


def test_a_layout_that_proportions_do_not_tell() -> None:
    """Then the layers behind do, or the user."""
    for shape, image in (((8, 8, 8), (16, 16)), ((5, 6, 7), (16, 16)), ((4, 8, 8, 8), (16, 16)), ((8, 8, 8), None)):
        assert find_layout(shape, image, None, lambda: True).channels == shape[-1]
        assert find_layout(shape, image, None, lambda: False).channels == shape[0]
        assert find_layout(shape, image, "channels_last", lambda: False).channels == shape[-1]
        with pytest.raises(UsageError, match="tell where its channels are: say it, layout=channels_first"):
            find_layout(shape, image, None, lambda: None)


@pytest.mark.parametrize(
    ("name", "points", "last"),
    [("Swin", ["features.1", "features.1.1"], True), ("ConvNeXt", ["features.0.1", "features.1"], False)],
)
def test_activations_of_equal_sides_are_told_apart_by_their_readers(name: str, points: list[str], last: bool) -> None:
    """[B, 8, 8, 8] has its channels last in the one, first in the other."""
    sample, x = (torch.zeros(1, *shape, dtype=torch.float64) for shape in ((3, 32, 32), (8, 8, 8)))
    x += torch.randn_like(x)
    cascade = cut_backbone(built(name, 0.0), points, num_classes=CLASSES, sample=sample, head="conv")
    assert torch.equal(cascade.refiners[0].head.body[0](x), x.movedim(-1, 1) if last else x)


def resnet(**settings: Any) -> Cascade:
    torch.manual_seed(1)
    network = ResNet18((3, 16, 16), CLASSES, width=4)
    sample = torch.zeros(1, 3, 16, 16)
    return cut_backbone(network, ["layer2", "layer3", "layer4"], num_classes=CLASSES, sample=sample, **settings)


def test_how_the_belief_before_enters() -> None:
    """As a residual, by a linear map that is zero at first, or not at all; into the network's classifier as well."""
    log_belief = torch.randn(2, CLASSES).log_softmax(1)
    for i, refiner in enumerate(resnet(belief="residual").refiners):
        hidden = torch.randn(2, *((8, 8, 8), (16, 4, 4), (CLASSES,))[i])
        plain = refiner.head.body(hidden)
        assert torch.equal(refiner.head(hidden, log_belief), plain + log_belief)
    for refiner in resnet(belief="concat").refiners:
        assert torch.equal(refiner.head.belief.weight, torch.zeros(CLASSES, CLASSES))
        nn.init.eye_(refiner.head.belief.weight)
    last = refiner.head
    logits = torch.randn(2, CLASSES)
    assert torch.equal(last(logits, log_belief), logits + log_belief.exp())
    assert all(refiner.head.belief is None for refiner in resnet(belief="none").refiners)
    assert torch.equal(resnet(belief="none").refiners[-1].head(logits, log_belief), logits)


def test_refiners_read_the_features_on_request() -> None:
    """Averaged to the size of the hidden activation, through a 1x1 convolution that is zero at first."""
    cascade = resnet(reads_features=True).eval()
    assert [refiner.reader is not None for refiner in cascade.refiners] == [False, True, True]
    x = torch.randn(2, 3, 16, 16)
    features = cascade.extractor(x)
    states = list(cascade.states(x))
    refiner = cascade.refiners[1]
    untouched = refiner(features, states[1])
    assert torch.equal(untouched[0], refiner(torch.zeros_like(features), states[1])[0]), "zero at first"
    nn.init.normal_(refiner.reader[-1].weight)
    _, hidden = states[1]
    pooled = nn.functional.adaptive_avg_pool2d(features, hidden.shape[2:])
    added = nn.functional.conv2d(pooled, refiner.reader[-1].weight)
    expected = refiner.layers(hidden + added)
    assert torch.allclose(refiner(features, states[1])[1], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "points"), [("Swin", ["features.1", "features.3", "head"]), ("ViT", ["encoder", "encoder.ln"])]
)
def test_features_are_read_in_every_layout(name: str, points: list[str]) -> None:
    x, _ = batch(name)
    cascade = cut_backbone(built(name, 0.0), points, num_classes=CLASSES, sample=x, reads_features=True)
    for refiner in cascade.refiners:
        for parameter in () if refiner.reader is None else refiner.reader.parameters():
            nn.init.normal_(parameter)
    plain = cut_backbone(built(name, 0.0), points, num_classes=CLASSES, sample=x)
    assert cascade.refiners[1].reader is not None
    assert not torch.allclose(cascade(x), plain(x))


def test_features_of_another_kind_are_refused() -> None:
    """Image features, tokens later."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(2),
        nn.Linear(64, 8),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )
    sample = torch.zeros(1, 3, 16, 16)
    with pytest.raises(UsageError, match=r"reads_features=true adds features \[B, 4, 8, 8\] to a hidden"):
        cut_backbone(network, [1, 3], num_classes=CLASSES, sample=sample, reads_features=True, head="linear")


def test_a_head_of_ones_own() -> None:
    cascade = resnet(head=lambda shape, classes: nn.Sequential(nn.Flatten(), nn.LazyLinear(classes)))
    assert [type(refiner.head.body) for refiner in cascade.refiners] == [nn.Sequential, nn.Sequential, nn.Identity]
    assert cascade(torch.randn(2, 3, 16, 16)).shape == (2, CLASSES)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"head": lambda shape, classes: Wrong()},
            r"head maps a hidden activation \[2, 8, 8, 8\] to \[2, 4\], but must map",
        ),
        ({"head": lambda shape, classes: nn.Linear(3, 3)}, r"head does not take a hidden activation \[2, 8, 8, 8\]: "),
        (
            {"head": lambda shape, classes: classes},
            r"head returns a int for the shape \[8, 8, 8\], but must return a module",
        ),
        (
            {"pool": "class", "head": "linear"},
            r"pool=class reads the first of tokens \[B, T, D\], but a hidden activation",
        ),
        ({"pool": "class", "head": "conv"}, "pool=class is for head=linear and mlp, and head=conv does not read it"),
    ],
)
def test_heads_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resnet(**settings)


def test_the_share_of_heads() -> None:
    """Counted by hand: two linear heads on 8 and 16 channels, of a network without other additions."""
    cascade = resnet(head="linear", belief="none")
    own = sum(p.numel() for p in cascade.parameters())
    added = (8 + 1) * CLASSES + (16 + 1) * CLASSES
    _, whole = counted(lambda: ResNet18((3, 16, 16), CLASSES, width=4)(torch.randn(1, 3, 16, 16)))
    share = 100 * (8 + 16) * CLASSES / (whole + (8 + 16) * CLASSES)
    text = shares_of_heads(cascade, torch.randn(1, 3, 16, 16))
    assert text == (
        f"{100 * added / own:.1f} % of {own:,} parameters, {share:.1f} % of "
        f"{whole + (8 + 16) * CLASSES:,} multiply-adds an image"
    )
    assert shares_of_heads(Cascade(nn.Linear(3, 3), [nn.Bilinear(3, 2, 2)], 2), torch.zeros(1, 3)) is None
