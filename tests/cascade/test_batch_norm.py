"""Batch norms that share their statistics, in one process: others are made up, as copies of the rows here."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidpar import UsageError
from sidpar.cascade.batch_norm.module import Company, SynchronisedBatchNorm, synchronise
from sidpar.cascade.batch_norm.stand_ins import Recorded, SameRows
from sidpar.cascade.batch_norm.statistics import Sharing
from tests import networks

TOLERANCE = 1e-12
SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (6, 3),
    nn.BatchNorm2d: (6, 3, 4, 5),
    nn.BatchNorm3d: (4, 3, 2, 3, 2),
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": None},
    {"momentum": 0.3, "eps": 0.1},
)


class WithActivation(nn.BatchNorm2d):
    """Adds something to batch norm, and has a forward of its own, as there are in timm."""

    def __init__(self, channels: int, **settings: Any) -> None:
        super().__init__(channels, **settings)
        self.slope = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        average = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                average = 1.0 / float(self.num_batches_tracked)
        own = self.running_mean, self.running_var
        of_batch = self.training or own == (None, None)
        normalised = F.batch_norm(x, *own, self.weight, self.bias, of_batch, average, self.eps)
        return F.prelu(normalised, self.slope.reshape(1))


def made(kind: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    """With weights that are not all the same."""
    norm = kind(3, **settings).double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5)
    return norm


def passed(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Two forwards and the backwards of some loss: results, gradients and buffers."""
    found = {}
    for k in range(2):
        given = (x + k).requires_grad_()
        output = norm(given)
        (output.sin() * torch.arange(1.0, 4.0).view(1, 3, *[1] * (x.dim() - 2))).sum().backward()
        assert given.grad is not None
        found |= {f"output {k}": output.detach(), f"gradient {k}": given.grad}
    gradients = {f"{name}'s gradient": p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return found | gradients | {name: buffer.clone() for name, buffer in norm.named_buffers()}


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", [*SHAPES, WithActivation])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_it_is_torchs_batch_norm_of_everyones_rows(kind: Any, settings: dict[str, Any], number: int) -> None:
    """In float64: forward, backward and running statistics; n ranks with the same rows are those rows n times."""
    x = torch.randn(SHAPES.get(kind, (6, 3, 4, 5)), dtype=torch.float64)
    torch.manual_seed(1)
    plain = made(kind, **settings)
    torch.manual_seed(1)
    norm, company = made(kind, **settings), Company()
    assert synchronise(nn.Sequential(norm), company) == ["0"]
    with company.joined(SameRows(number)):
        found = passed(norm, x)
    expected = passed(plain, torch.cat([x] * number))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name.startswith(("output", "gradient")):
            tensor = tensor[: len(x)]
        elif name.endswith("gradient"):
            tensor = tensor / number  # of the rows here; the sum over ranks is a message of its own
        assert close(found[name], tensor), name


@pytest.mark.parametrize("kind", [*SHAPES, WithActivation])
def test_alone_and_in_evaluation_it_is_what_it_was(kind: Any) -> None:
    """Bit for bit, and nobody is asked for anything."""
    x = torch.randn(SHAPES.get(kind, (6, 3, 4, 5)), dtype=torch.float64)
    plain = made(kind)
    norm, company = copy.deepcopy(plain), Company()
    synchronise(norm, company)
    found, expected = passed(norm, x), passed(plain, x)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    with company.joined(Silence()):
        assert torch.equal(norm.eval()(x), plain.eval()(x))


class Silence:
    """Nobody may be asked."""

    counts = True

    def gather(self, row: Tensor) -> Tensor:
        raise AssertionError("statistics are asked for")

    sum = gather


def test_names_weights_and_modules_stay() -> None:
    """In place: what holds a module or a parameter holds the same afterwards; the weights fit both ways."""
    cascade, plain = networks.normalised(3), networks.normalised(3)
    before = {name: id(tensor) for name, tensor in [*cascade.named_parameters(), *cascade.named_buffers()]}
    modules = dict(cascade.named_modules())
    names = synchronise(cascade, Company())
    assert len(names) == 2 + 3 * 2
    assert {name: id(tensor) for name, tensor in [*cascade.named_parameters(), *cascade.named_buffers()]} == before
    assert dict(cascade.named_modules()) == modules
    assert list(cascade.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(cascade.state_dict())
    cascade.load_state_dict(plain.state_dict())
    for name, module in cascade.named_modules():
        norm = isinstance(module, nn.BatchNorm1d)
        assert isinstance(module, SynchronisedBatchNorm) == norm == (name in names)
    assert synchronise(cascade, Company()) == names, "once more changes the company only"
    assert type(cascade.get_submodule(names[0])).__name__ == "SynchronisedBatchNorm1d"


def test_a_copy_is_a_module_of_its_own() -> None:
    norm, company = made(nn.BatchNorm1d), Company()
    synchronise(norm, company)
    other = copy.deepcopy(norm)
    x = torch.randn(6, 3, dtype=torch.float64)
    with company.joined(SameRows(2)):
        assert torch.equal(other(x), norm(x))
    del company
    norm(x)  # whose company is no more: it is alone


def test_only_what_counts_is_in_the_statistics() -> None:
    """A row that does not count gets no gradient, and gives none."""

    class Elsewhere:
        """Another rank has all the rows."""

        counts = False

        def gather(self, row: Tensor) -> Tensor:
            assert not row.any()
            theirs = torch.cat([x.mean(0), x.var(0, correction=0), torch.tensor([6.0], dtype=torch.float64)])
            return torch.stack([row, theirs])

        def sum(self, sums: Tensor) -> Tensor:
            assert not sums.any()
            return torch.ones_like(sums)

    x = torch.randn(6, 3, dtype=torch.float64)
    plain, company = made(nn.BatchNorm1d), Company()
    norm = copy.deepcopy(plain)
    synchronise(norm, company)
    row = torch.full((1, 3), 7.0, dtype=torch.float64).requires_grad_()
    with company.joined(Elsewhere()):
        (0 * norm(row)).sum().backward()
    plain(x)
    for name, buffer in plain.named_buffers():
        assert close(norm.get_buffer(name), buffer), name
    assert row.grad is not None
    assert not row.grad.any()
    assert not any(p.grad.any() for p in norm.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_taken_in_fp32_at_least(dtype: torch.dtype) -> None:
    """Of activations in bfloat16, whose own sums would lose the mean; the result is in bfloat16 again."""
    x = (torch.randn(512, 3, 4, 4) + 30).to(dtype)
    norm, company = nn.BatchNorm2d(3), Company()
    synchronise(norm, company)
    given = x.clone().requires_grad_()
    with company.joined(SameRows(2)), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = norm(given)
    output.float().square().sum().backward()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    exact = x.double()
    assert torch.allclose(norm.running_mean.double(), 0.1 * exact.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(norm.running_var.double() - 0.9, 0.1 * exact.var((0, 2, 3)), rtol=1e-3)
    assert (output.dtype, norm.running_mean.dtype) == (dtype, torch.float32)
    assert given.grad is not None
    assert given.grad.dtype == dtype
    expected = F.batch_norm(exact, None, None, training=True)
    assert torch.allclose(output.double(), expected, atol=0.02 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_stays(channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 3, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
    norm, company = nn.BatchNorm2d(3), Company()
    synchronise(norm, company)
    with company.joined(SameRows(2)):
        output = norm(x)
    output.sin().sum().backward()
    assert output.is_contiguous(memory_format=memory_format)
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=memory_format)


def test_a_forward_of_parts_gets_the_statistics_of_all() -> None:
    norms = nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3, affine=False)).double()
    company, recorded = Company(), Recorded()
    synchronise(norms, company)
    x = torch.randn(7, 3, dtype=torch.float64)
    with company.joined(recorded), torch.no_grad():
        whole, parts = norms(x), []
        for rows in (x[:1], x[1:5], x[5:]):
            recorded.replay()
            parts.append(norms(rows))
        assert close(torch.cat(parts), whole)
        with pytest.raises(RuntimeError, match="normalises more often"):
            norms(x)


class Own(nn.BatchNorm1d):
    """Takes statistics of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="0 is torch's SyncBatchNorm, which has a group of ranks of its own: use nn.B"):
        synchronise(nn.Sequential(nn.SyncBatchNorm(3)), Company())
    norm, company = Own(3), Company()
    synchronise(norm, company)
    sharing: Sharing = SameRows(2)
    with (
        company.joined(sharing),
        pytest.raises(UsageError, match="SynchronisedOwn does not call torch.nn.functional.batch_norm, so its statist"),
    ):
        norm(torch.randn(4, 3))
