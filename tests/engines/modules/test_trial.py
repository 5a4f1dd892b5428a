"""What the first pass over a few rows must not do, must not miss, and must not take for something else."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import Cascade, LocalEngine, Objective, ParallelEngine, Runtime, Stage, UsageError
from sidpar.seeding import seeded
from tests.engines.modules.quirks import CLASSES, INPUTS, WIDTH, batches
from tests.harness import run_ranks

pytestmark = pytest.mark.processes


class Layer(nn.Module):
    """A linear layer, with something between it and its output."""

    def __init__(self, inputs: int, outputs: int, between: Callable[["Layer", Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.linear, self.between = nn.Linear(inputs, outputs), between
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        made: Tensor = self.linear(torch.cat(tensors, 1))
        return made if self.between is None else self.between(self, made)


def cascade(extractor: Any = None, refiner: Any = None) -> Cascade:
    with seeded(0):
        refiners = [Layer(WIDTH + CLASSES, CLASSES, refiner) for _ in range(2)]
        return Cascade(Layer(INPUTS, WIDTH, extractor), refiners, CLASSES).double()


def normalised(layer: Layer, made: Tensor) -> Tensor:
    return torch.as_tensor(layer.norm(made))


def refusal(runtime: Runtime, network: Cascade, rows: list[int], schedule: Any = "fused", **settings: Any) -> str:
    """What the engine says to batches of so many rows; "" if it trains."""
    stage = Stage(network, runtime, extractor=settings.pop("extractor", "replicated"))
    engine = ParallelEngine(stage, Objective(), schedule=schedule, **settings)
    try:
        for number in rows:
            engine.step(*batches(1, number)[0])
    except UsageError as error:
        return str(error)
    return ""


def one_row(runtime: Runtime, microbatches: int, rows: list[int], where: str) -> str:
    return refusal(runtime, cascade(**{where: normalised}), rows, microbatches=microbatches)


@pytest.mark.parametrize("where", ["extractor", "refiner"])
@pytest.mark.parametrize(("microbatches", "rows"), [(4, [4]), (1, [8, 1])])
def test_a_single_row_that_a_module_does_not_take(microbatches: int, rows: list[int], where: str) -> None:
    """A microbatch of one row, or a last batch of one: a line, the same on every rank."""
    for said in run_ranks(one_row, 2, microbatches, rows, where):
        assert "tried with B=1" in said
        assert "Expected more than 1 value per channel" in said


def of_half_the_replicas(runtime: Runtime) -> str:
    def centred(layer: Layer, made: Tensor) -> Tensor:
        return made - made.mean(0) if made.detach().mean() > 0 else made

    network = cascade(extractor=centred)
    with torch.no_grad():
        network.extractor.linear.weight.fill_(1.0)  # type: ignore[union-attr, operator]
    stage = Stage(network, runtime, extractor="sharded")
    x = torch.ones(8, INPUTS, dtype=torch.float64) * torch.tensor([1.0] * 4 + [-1.0] * 4)[:, None]
    engine = ParallelEngine(stage, Objective())
    with pytest.raises(UsageError) as failure:
        engine.step(x + 0.1 * batches(1)[0][0].abs(), batches(1)[0][1])
    return str(failure.value)


def test_what_the_rows_of_one_replica_show_ends_all() -> None:
    said = run_ranks(of_half_the_replicas, 4, replicas=2)
    assert len(set(said)) == 1
    assert "a sharded extractor sees only 1/2 of the batch" in said[0]


def test_no_hook_of_the_users_is_called() -> None:
    """One that steps an optimizer would step it in the trial."""
    stage = Stage(cascade(normalised, normalised), Runtime.single("cpu"), extractor="replicated")
    calls: list[str] = []
    weight = stage.refiners["0"].linear.weight
    assert isinstance(weight, nn.Parameter)
    weight.register_hook(lambda gradient: calls.append("gradient"))
    weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    engine = ParallelEngine(stage, Objective())
    for number in (1, 2):
        engine.step(*batches(1)[0])
        assert calls == ["gradient", "accumulated"] * number


def last(layer: Layer, made: Tensor) -> Tensor:
    """Keeps what nobody reads, in types of many kinds."""
    numbers = made.detach().numpy()
    layer.seen = (numbers.mean(), frozenset({made.shape}), Decimal(len(numbers)), made.detach()[:1].to_sparse())
    return made


def sparse(layer: Layer, made: Tensor) -> Tensor:
    if not hasattr(layer, "table"):
        raise AssertionError("the table is made beforehand")
    return normalised(layer, made) + layer.table(made.detach().argmax(1))


def test_what_is_only_looked_at_is_not_kept() -> None:
    assert refusal(Runtime.single("cpu"), cascade(refiner=last), [8], microbatches=2) == ""


def test_sparse_gradients_beside_batch_norm() -> None:
    network = cascade(refiner=sparse)
    for refiner in network.refiners:
        refiner.table = nn.Embedding(CLASSES, CLASSES, sparse=True).double()
    assert refusal(Runtime.single("cpu"), network, [8, 8]) == ""


def late(layer: Layer, made: Tensor) -> Tensor:
    if not hasattr(layer, "made_late"):
        layer.made_late = nn.Linear(CLASSES, CLASSES).double()
    return torch.as_tensor(layer.made_late(made))


@pytest.mark.parametrize("engine", [LocalEngine, ParallelEngine])
def test_parameters_that_a_forward_makes(engine: Any) -> None:
    stage = Stage(cascade(refiner=late), Runtime.single("cpu"), extractor="replicated")
    with pytest.raises(
        UsageError, match=r"refiner 0 creates parameters in its first forward \(made_late.weight, made_l"
    ):
        engine(stage, Objective()).step(*batches(1)[0])


def masked(layer: Layer, made: Tensor) -> Tensor:
    return torch.nn.functional.dropout(made, 0.5, training=True)


@pytest.mark.parametrize("schedule", ["fused", "two_phase"])
def test_masks_in_evaluation_mode_are_seeded_too(schedule: Any) -> None:
    found = []
    for chosen in ("fused", schedule):
        stage = Stage(cascade(masked, masked), Runtime.single("cpu"), extractor="replicated").eval()
        ParallelEngine(stage, Objective(), schedule=chosen).step(*batches(1)[0])
        found.append([parameter.grad for parameter in stage.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_batch_norm_that_is_trained_later() -> None:
    """First in evaluation mode, then in training mode: the teacher pass is undone in either."""
    buffers = []
    for schedule in ("fused", "two_phase"):
        stage = Stage(cascade(normalised, normalised), Runtime.single("cpu"), extractor="replicated")
        engine = ParallelEngine(stage, Objective(), schedule=schedule)  # type: ignore[arg-type]
        norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm1d)]
        for training in (False, True):
            for norm in norms:
                norm.train(training)
            engine.step(*batches(1)[0])
        buffers.append([norm.running_var for norm in norms])
    for one, other in zip(*buffers, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
