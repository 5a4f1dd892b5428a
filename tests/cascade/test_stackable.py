"""Which refiners cannot run at once, and what is said of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar.cascade.cascade import Cascade
from sidpar.cascade.stackable import PROBE_ROWS
from sidpar.cascade.stacked import StackedRefiners
from sidpar.models.concat_refiner import ConcatRefiner
from tests import networks
from tests.cascade.stacked_problem import NETWORKS, Problem


def build(*refiners: nn.Module, **options: Any) -> StackedRefiners:
    return StackedRefiners(list(refiners), **options)


def refused(problem: Problem, message: str) -> None:
    stacked = problem.stack()
    with pytest.raises(ValueError, match=message):
        stacked.forward(problem.features, problem.states())


def test_other_shapes_are_refused() -> None:
    message = (
        r"refiner 6 differs from refiner 4, .*: layers.0.weight is \[8, 7\] torch.float32 on cpu, trained instead of "
        r"\[7, 7\] torch.float32 on cpu, trained; use parallel.refiner_execution=loop, or make them equal"
    )
    with pytest.raises(ValueError, match=message):
        build(ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7], 3), ConcatRefiner(4, [8], 3), first=4)


def test_other_depths_dtypes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"refiner 1 .*layers.4.weight is \[3, 3\].* instead of missing"):
        build(ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7, 3], 3))
    with pytest.raises(ValueError, match="refiner 1 .*layers.0.weight is .*float64.* instead of .*float32"):
        build(ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7], 3).double())
    with pytest.raises(ValueError, match="the type of the refiner is tests.networks.Masked instead of sidpar.models"):
        build(ConcatRefiner(4, [7], 3), networks.Masked())
    with pytest.raises(ValueError, match="refiner 1 .*: 1.negative_slope is 0.2 instead of 0.1"):
        build(*(nn.Sequential(nn.Linear(3, 3), nn.LeakyReLU(slope)) for slope in (0.1, 0.2)))


def test_shared_parameters_are_refused() -> None:
    one, other = ConcatRefiner(4, [7], 3), ConcatRefiner(4, [7], 3)
    other.layers[0].weight = one.layers[0].weight
    with pytest.raises(ValueError, match="refiner 3 shares layers.0.weight with refiner 2.*refiner_execution=loop"):
        build(one, other, first=2)


def test_random_numbers_are_refused_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "dropout", networks.with_dropout)
    refused(
        Problem("dropout"), "refiner 0 draws random numbers in its forward, .*refiner_execution=loop, or refiners w"
    )
    problem = Problem("dropout")
    stacked = problem.stack()
    problem.cascade.eval()
    problem.at_once(stacked)


def test_a_dropout_layer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropping() -> nn.Module:
        refiner = ConcatRefiner(4, [7], networks.CLASSES)
        refiner.layers.append(nn.Dropout(0.5))
        return refiner

    build_cascade = partial_cascade(dropping)
    monkeypatch.setitem(NETWORKS, "dropout", build_cascade)
    refused(Problem("dropout"), r"refiner 0 draws random numbers in its forward, layers.3 \(Dropout\), and stacked")


def partial_cascade(refiner: Callable[[], nn.Module]) -> Callable[[int], Cascade]:
    def cascade(num_refiners: int) -> Cascade:
        extractor = nn.Linear(networks.INPUTS, 4)
        return Cascade(extractor, [refiner() for _ in range(num_refiners)], networks.CLASSES).double()

    return cascade


def test_running_statistics_are_refused_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "noisy", networks.noisy)
    message = (
        r"refiner 0 writes buffers in its forward \(layers.1.running_mean, layers.1.running_var, "
        r"layers.1.num_batches_tracked, layers.1 \(BatchNorm1d\)\).*loop, or layers without running statistics"
    )
    refused(Problem("noisy"), message)
    problem = Problem("noisy")
    stacked = problem.stack()
    problem.cascade.eval()
    problem.at_once(stacked)


def test_a_refused_trial_leaves_the_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "noisy", networks.noisy)
    problem = Problem("noisy")
    stacked = problem.stack()
    states = problem.states()
    before = {name: buffer.clone() for name, buffer in problem.cascade.named_buffers()}
    with pytest.raises(ValueError, match="writes buffers"):
        stacked.forward(problem.features, states)
    assert all(torch.equal(buffer, before[name]) for name, buffer in problem.cascade.named_buffers())


def test_code_that_cannot_be_batched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(ConcatRefiner):
        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            logits = super().forward(features, log_belief)
            return logits if logits.sum().item() > 0 else -logits

    monkeypatch.setitem(NETWORKS, "branching", partial_cascade(lambda: Branching(4, [7], networks.CLASSES)))
    refused(Problem("branching"), r"refiner 0 and those like it cannot be stacked \(vmap: .*refiner_execution=loop")


def test_code_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In what no comparison of attributes shows: a function that each refiner holds."""

    class Holding(ConcatRefiner):
        made = 0

        def __init__(self) -> None:
            super().__init__(4, [7], networks.CLASSES)
            Holding.made += 1
            self.scale = [1.0 if Holding.made < 3 else 2.0]

        def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
            return super().forward(features, log_belief) * self.scale[0]

    monkeypatch.setitem(NETWORKS, "holding", partial_cascade(Holding))
    refused(
        Problem("holding"), "refiner 2 gives another result when it is stacked, because stacked refiners run the code"
    )


def test_states_of_other_shapes_are_refused() -> None:
    problem = Problem("with_hidden_state")
    problem.first = 0
    message = (
        r"refiner 1 receives a state of shapes \[\[6, 3\], \[6, 6\]\], refiner 0 one of \[\[6, 3\]\], "
        r".*loop, or stack only those that do"
    )
    refused(problem, message)


@pytest.mark.parametrize(
    "change",
    [
        lambda cascade: cascade.float(),
        lambda cascade: cascade.load_state_dict({k: v.clone() for k, v in cascade.state_dict().items()}, assign=True),
    ],
)
def test_parameters_that_left_the_storage_are_refused(change: Callable[[Cascade], Any]) -> None:
    problem = Problem()
    stacked = problem.stack()
    states = problem.states()
    change(problem.cascade)
    with pytest.raises(ValueError, match=r"layers.0.weight of refiner 0 was moved, converted or replaced after"):
        stacked.forward(problem.features, states)


_rows: list[int] = []
"""Global, since a trial undoes what a hook keeps for itself."""


def _note_rows(_: object, arguments: tuple[Tensor, ...], __: object) -> None:
    _rows.append(len(arguments[0]))


def test_the_trial_takes_few_rows_once_per_mode() -> None:
    """A trial costs the n forwards that stacking is there to avoid."""
    problem = Problem(rows=3 * PROBE_ROWS)
    _rows.clear()
    problem.refiners[-1].register_forward_hook(_note_rows)
    stacked = problem.stack()
    states = problem.states()
    passes = []
    for training in (True, True, True, False):
        problem.cascade.train(training)
        _rows.clear()
        stacked.forward(problem.features, states)
        assert set(_rows) <= {PROBE_ROWS}
        passes.append(len(_rows))
    assert passes[1:3] == [0, 0]
    assert passes[0] == passes[3] > 0
