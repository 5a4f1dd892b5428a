"""A cascade by itself, in what torch does with modules besides calling them; also one that writes into its inputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sidpar import Cascade
from tests import networks


class Writes(nn.Module):
    """Writes into both of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4 + networks.CLASSES, networks.CLASSES).double()

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.layer(torch.cat([features.mul_(0.5), log_belief.exp_()], 1))
        return logits


def writing(num_refiners: int) -> Cascade:
    return Cascade(networks.plain(1).extractor, [Writes() for _ in range(num_refiners)], networks.CLASSES)


def in_inference_mode(cascade: Cascade, x: Tensor) -> Tensor:
    with torch.inference_mode():
        cascade(x.clone())
        result: Tensor = cascade(x)
    return result


def by_rows(cascade: Cascade, x: Tensor) -> Tensor:
    result: Tensor = torch.func.vmap(lambda row: cascade(row[None])[0])(x)
    return result


def compiled(cascade: Cascade, x: Tensor) -> Tensor:
    torch.compiler.reset()
    run: Callable[[Tensor], Tensor] = torch.compile(cascade, fullgraph=True, backend="eager")
    return run(x)


def exported(cascade: Cascade, x: Tensor) -> Tensor:
    result: Tensor = torch.export.export(cascade, (x,)).module()(x)
    return result


def traced(cascade: Cascade, x: Tensor) -> Tensor:
    result: Tensor = make_fx(cascade)(x)(x)
    return result


@pytest.mark.parametrize("build", [networks.plain, writing])
@pytest.mark.parametrize("run", [in_inference_mode, by_rows, compiled, exported, traced])
def test_as_it_is_called(run: Callable[[Cascade, Tensor], Tensor], build: Callable[[int], Cascade]) -> None:
    cascade = build(3)
    x, _ = networks.batch(4)
    found = run(cascade, x)
    assert torch.allclose(found, cascade(x))


@pytest.mark.parametrize("build", [networks.plain, writing])
def test_without_numbers(build: Callable[[int], Cascade]) -> None:
    cascade, (x, _) = build(3), networks.batch(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert cascade(torch.empty_like(x)).shape == (4, networks.CLASSES)
