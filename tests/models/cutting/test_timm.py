"""timm's networks, cut: bit for bit the network, in three families."""

from typing import Any

import pytest
import torch

from sidpar import UsageError, cut_backbone
from sidpar.models.backbones.libraries import library_network
from tests.models.cutting.families import end_to_end

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'sidpar[timm]'")

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10t": {"drop_rate": 0.2},
    "convnext_atto": {"drop_path_rate": 0.2},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3, "drop_rate": 0.2},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_is_the_network(name: str) -> None:
    """With images of one channel, and dropout that the outer forward switches by its mode."""
    torch.manual_seed(1)
    whole = library_network(f"timm:{name}", (1, 32, 32), 5, **NETWORKS[name]).double()
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    x = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    cascade = cut_backbone(whole, num_classes=5, sample=x, num_refiners=2, belief="none")
    for training in (True, False):
        found = []
        for forward in (whole, lambda x: end_to_end(cascade, x)):
            whole.load_state_dict(before)
            whole.train(training)
            cascade.train(training)
            whole.zero_grad()
            torch.manual_seed(3)
            logits = forward(x)
            logits.square().sum().backward()
            found.append((logits, {key: p.grad for key, p in whole.named_parameters()}))
        (expected, gradients), (logits, own) = found
        assert torch.equal(logits, expected)
        assert all(torch.equal(own[key], gradient) for key, gradient in gradients.items() if gradient is not None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet10", {}, "timm has no network 'resnet10' that classifies images; like it: resnet10t"),
        ("timm:resnet10t", {"wide": 3}, "it cannot be made with model.options={'wide': 3}: "),
    ],
)
def test_networks_that_timm_does_not_have(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        library_network(name, (3, 32, 32), 5, **options)
    assert message in str(caught.value)
