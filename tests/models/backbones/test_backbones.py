"""The networks that are known by name: their sizes as published, their weights from files, and what they refuse."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from sidpar import UsageError
from sidpar.models import BACKBONES, EXTRACTORS, MODELS
from sidpar.models.backbones import libraries
from sidpar.models.backbones.libraries import library_network
from sidpar.models.backbones.pretrained import freeze_modules, load_pretrained
from sidpar.models.backbones.resnet import ResNet18
from sidpar.models.backbones.vit import vit_tiny
from sidpar.models.cutting.arithmetic import counted
from tests.models.cutting.families import of_the_network

IMAGES = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("resnet18", 11_173_962, 555_422_720),
        ("vgg11", 9_225_610, 152_769_536),
        ("vgg11_bn", 9_231_114, 152_769_536),
        ("vit_tiny", 5_362_762, 365_107_584),
    ],
)
def test_sizes(name: str, parameters: int, multiply_adds: int) -> None:
    """Of VGG-11 sum of 9 C_in C_out H W; of ViT-Tiny 12 (12 D^2 T + 2 T^2 D) and its ends, with D = 192, T = 65."""
    (backbone,) = (each for each in BACKBONES if each.name == name)
    network = backbone.build(IMAGES, 10, **backbone.sizes)
    assert sum(p.numel() for p in network.parameters()) == parameters
    logits, found = counted(lambda: network.eval()(torch.randn(1, *IMAGES)))
    assert (logits.shape, found) == ((1, 10), multiply_adds)
    assert backbone.classifier in dict(network.named_children())


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_modules_are_named_as_torchvision_names_them(name: str) -> None:
    ours = ResNet18(IMAGES, 10, width=64) if name == "resnet18" else vit_tiny(IMAGES, 10, width=192, depth=12)
    theirs = torchvision.models.get_model("resnet18" if name == "resnet18" else "vit_b_16")
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("name", [backbone.name for backbone in BACKBONES])
def test_weights_depend_on_the_seed_and_other_channels_fit(name: str) -> None:
    sizes = {"width": 16, "depth": 4} if name == "vit_tiny" else {"width": 4}
    generator = torch.get_rng_state()
    first, again, other = (MODELS[name].build((1, 32, 32), 7, 2, seed=seed, **sizes) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in first.state_dict().items())
    assert any(not torch.equal(tensor, other.state_dict()[key]) for key, tensor in first.state_dict().items())
    whole = EXTRACTORS[name].build((1, 32, 32), 7, 2, seed=1, **sizes)
    x = torch.randn(2, 1, 32, 32)
    assert first(x).shape == whole(x).shape == (2, 7)
    own = of_the_network(first.state_dict())
    features = {key.split(".", 2)[2]: value for key, value in whole.state_dict().items() if key.startswith("extractor")}
    assert features.keys() < own.keys(), "all but the classifier"
    assert all(torch.equal(value, own[key]) for key, value in features.items()), "one network in both readings"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "vgg11",
            (1, 8, 8),
            "model.name=vgg11, images [1, 8, 8]: it halves images five times, so they must have at least",
        ),
        ("vit_tiny", (3, 30, 30), "it cuts square images into patches of 4x4 pixels, but the dataset's have 30x30"),
        (
            "vit_tiny",
            (3, 32, 64),
            "but the dataset's have 32x64: use one whose images have equal sides, a multiple of 4",
        ),
    ],
)
def test_images_that_do_not_fit(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        MODELS[name].build(shape, 10, 2)
    assert message in str(caught.value)


def test_a_width_without_heads() -> None:
    with pytest.raises(UsageError, match="model.width=200 must be a multiple of 64, the width of an attention head"):
        MODELS["vit_tiny"].build(IMAGES, 10, 2, width=200)


def test_networks_of_libraries() -> None:
    network = library_network("torchvision:resnet18", (3, 64, 64), 7)
    assert network.fc.out_features == 7
    assert library_network("torchvision:vit_b_32", (3, 32, 32), 7, image_size=32).image_size == 32


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        (
            "torchvision:resnet81",
            IMAGES,
            {},
            "torchvision has no network 'resnet81' that classifies images; like it: resn",
        ),
        ("torchvision:fcn_resnet50", IMAGES, {}, "torchvision has no network 'fcn_resnet50' that classifies images"),
        (
            "torchvision:resnet18",
            (1, 8, 8),
            {},
            "torchvision's networks take images of 3 channels, but the dataset's have",
        ),
        ("torchvision:resnet18", IMAGES, {"wide": 3}, "it cannot be made with model.options={'wide': 3}: "),
        (
            "torchvision:vit_b_16",
            IMAGES,
            {"image_size": 30},
            "it cannot be made with model.options={'image_size': 30}: In",
        ),
    ],
)
def test_networks_that_libraries_do_not_have(
    name: str, shape: tuple[int, int, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        library_network(name, shape, 10, **options)
    assert message in str(caught.value)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(libraries.importlib, "import_module", missing)
    with pytest.raises(
        UsageError, match=r"timm is not installed: pip install 'sidpar\[timm\]', or name a network of torch"
    ):
        library_network("timm:resnet18", IMAGES, 10)


def network(num_classes: int = 10, channels: int = 3) -> nn.Module:
    return ResNet18((channels, 32, 32), num_classes, width=4)


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint", "wrapped"])
def test_weights_from_a_file(form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    given, started = network(), network()
    state, path = given.state_dict(), tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pth":
        torch.save(state, path)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    load_pretrained(started, path, 10)
    assert all(torch.equal(tensor, state[name]) for name, tensor in started.state_dict().items())


def test_a_classifier_of_other_classes_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given, started = network(1000), network(10)
    before, path = started.fc.weight.clone(), tmp_path / "weights.pth"
    torch.save(given.state_dict(), path)
    with caplog.at_level(logging.INFO):
        load_pretrained(started, path, 10)
    assert f"{path} is for 1000 classes, not 10: fc.weight, fc.bias begin anew" in caplog.text
    assert torch.equal(started.fc.weight, before)
    assert torch.equal(started.conv1.weight, given.conv1.weight)


class Stranger:
    """What no file of weights holds."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: {**network().state_dict(), "extra": torch.ones(2)},
            "extra is not in the network; give a file of the sa",
        ),
        (
            lambda: {name: tensor for name, tensor in network().state_dict().items() if "layer4" not in name},
            "layer4.0.conv1.weight, layer4.0.bn1.weight, layer4.0.bn1.bias, layer4.0.bn1.running_mean, "
            "layer4.0.bn1.running_var and 20 more are missing; ",
        ),
        (lambda: network(channels=1).state_dict(), "conv1.weight has the shape [4, 1, 3, 3], but [4, 3, 3, 3] in the"),
        (lambda: {}, "holds no tensors by name: give a state_dict"),
        (lambda: [1, 2], "holds no tensors by name: give a state_dict"),
        (lambda: {"weights": Stranger()}, "cannot be read (Weights only load failed"),
    ],
    ids=["unexpected", "missing", "channels", "empty", "no names", "pickled objects"],
)
def test_weights_that_do_not_fit(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "weights.pth")
    with pytest.raises(UsageError) as caught:
        load_pretrained(network(), tmp_path / "weights.pth", 10)
    assert message in str(caught.value)
    assert str(tmp_path / "weights.pth") in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.pth", "text.pth", "text.safetensors"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    for path in ("text.pth", "text.safetensors"):
        (tmp_path / path).write_text("no weights")
    with pytest.raises(UsageError, match=f"weights={tmp_path}/{name} cannot be read "):
        load_pretrained(network(), tmp_path / name, 10)


def test_frozen_modules() -> None:
    frozen = network()
    freeze_modules(frozen, ["conv1", "layer1.0"])
    names = [name for name, parameter in frozen.named_parameters() if not parameter.requires_grad]
    assert names == [name for name, _ in frozen.named_parameters() if name.startswith(("conv1.", "layer1.0."))]
    with pytest.raises(UsageError, match="model.freeze: the network has no module 'layer9'; it has conv1, bn1, relu"):
        freeze_modules(frozen, ["layer9"])
