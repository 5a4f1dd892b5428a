"""The cascade on its own, in one process."""

import pytest
import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import Cascade
from sidpar.cascade.specs import Skeleton
from tests import networks


def test_beliefs_are_the_chain() -> None:
    cascade = networks.plain(3)
    x, _ = networks.batch(4)
    beliefs = cascade.beliefs(x)
    assert beliefs.shape == (4, 4, networks.CLASSES)
    assert torch.allclose(beliefs.sum(-1), torch.ones(4, 4, dtype=torch.float64))
    assert torch.allclose(beliefs[0], torch.full((4, 3), 1 / 3, dtype=torch.float64)), "p_0 is uniform"
    by_hand = cascade.refiners[0](cascade.extractor(x), beliefs[0].log()).softmax(-1)
    assert torch.allclose(beliefs[1], by_hand)
    assert torch.equal(cascade(x), beliefs[-1]), "inference is the last belief"


def test_a_refiner_may_return_logits_or_log_belief() -> None:
    class Normalised(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            normalised: Tensor = self.inner(features, log_belief).log_softmax(-1)
            return normalised

    plain = networks.plain(2)
    wrapped = Cascade(plain.extractor, [Normalised(r) for r in plain.refiners], networks.CLASSES)
    x, _ = networks.batch(3)
    assert torch.allclose(plain(x), wrapped(x))


def test_tuples_and_tokens() -> None:
    x, _ = networks.batch(3)
    assert networks.with_hidden_state(2)(x).shape == (3, 3)
    assert networks.tokens(2)(x).shape == (3, 5, 3)


def test_specs_are_what_a_real_pass_shows() -> None:
    for build in (networks.plain, networks.with_hidden_state, networks.tokens):
        cascade = build(3)
        x, _ = networks.batch(4)
        specs = Skeleton(cascade).specs(x)
        for state, expected in zip(cascade.states(x), specs.states, strict=True):
            assert [(tuple(t.shape[1:]), t.dtype) for t in state] == [tuple(spec) for spec in expected]


def test_skeleton_takes_no_memory_and_leaves_the_cascade_alone() -> None:
    cascade = networks.plain(2)
    skeleton = Skeleton(cascade)
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert set(skeleton.state_dict()) == set(cascade.state_dict())
    assert not any(parameter.is_meta for parameter in cascade.parameters())
    assert cascade.training


class Constant(nn.Module):
    """Returns a fixed shape, whatever it gets."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        return features.new_zeros(self.shape)


def test_messages() -> None:
    with pytest.raises(ValueError, match="a cascade needs at least one refiner, got none"):
        Cascade(nn.Identity(), [], 3)
    with pytest.raises(ValueError, match="at least 2 classes, got num_classes=1"):
        Cascade(nn.Identity(), [Constant(3, 1)], 1)
    x = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"the extractor does not take inputs of shape \[B, \*\[5\]\]"):
        Skeleton(Cascade(nn.Linear(4, 4), [Constant(3, 3)], 3)).specs(x)
    with pytest.raises(ValueError, match="the extractor returns a tensor of shape .* for a batch of 3: the first dim"):
        Skeleton(Cascade(nn.Flatten(0), [Constant(3, 3)], 3)).specs(x)
    with pytest.raises(ValueError, match="refiner 0 returns a tensor of shape .2, 3. for a batch of 3: the first dim"):
        Skeleton(Cascade(nn.Identity(), [Constant(2, 3)], 3)).specs(x)
    with pytest.raises(ValueError, match=r"refiner 0 returns a belief of shape \[B, \*\[4\]\].*num_classes=3"):
        Skeleton(Cascade(nn.Identity(), [Constant(3, 4)], 3)).specs(x)
    with pytest.raises(ValueError, match="refiner 0 does not take features"):
        Skeleton(Cascade(nn.Identity(), [nn.Bilinear(7, 7, 3)], 3)).specs(x)
