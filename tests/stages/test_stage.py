"""What a rank holds, and what it refuses to hold."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sidpar import BPEngine, Copies, LocalEngine, Objective, ParallelEngine, Runtime, Stage, UsageError, make_cut
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.optim import OptimConfig
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.seeding import seeded
from sidpar.training.optim import Optimizers
from tests import networks
from tests.harness import RankError, run_ranks


def shares(runtime: Runtime, extractor: Any, counts: list[int] | None) -> list[str]:
    return list(Stage(networks.plain(5), runtime, extractor=extractor, counts=counts).state_dict())


@pytest.mark.processes
def test_parameters_keep_their_global_names() -> None:
    everything = set(networks.plain(5).state_dict())
    found = run_ranks(shares, 2, "root", [1, 4])
    assert set(found[0]) | set(found[1]) == everything
    assert not set(found[0]) & set(found[1]), "each parameter on one rank"
    assert {name.split(".")[1] for name in found[1]} == {"1", "2", "3", "4"}
    for name in run_ranks(shares, 2, "replicated", None)[1]:
        assert name in everything


def cut_shares(runtime: Runtime) -> tuple[list[str], dict[str, list[int]]]:
    """The extractor of this cascade is Linear, Tanh, Linear; five refiners follow."""
    placement = make_cut("1f1b", "cut", 2, [1.0] * 3, [1.0] * 5, counts=[1, 7])
    stage = Stage(networks.plain(5), runtime, placement=placement)
    return list(stage.state_dict()), {name: stage.holders(name) for name in stage.skeleton.state_dict()}


@pytest.mark.processes
def test_layers_of_a_cut_extractor_keep_their_global_names() -> None:
    (first, owners), (second, same) = run_ranks(cut_shares, 2)
    assert first == ["extractor.0.weight", "extractor.0.bias"]
    assert set(first) | set(second) == set(owners) == set(networks.plain(5).state_dict())
    assert owners == same == {name: [int(name not in first)] for name in owners}


def copies(runtime: Runtime) -> tuple[list[str], list[list[int]]]:
    stage = Stage(networks.plain(3), runtime, placement=Copies(3, 2))
    return list(stage.state_dict()), [stage.holders(name) for name in stage.state_dict()]


@pytest.mark.processes
def test_copies_hold_everything() -> None:
    for names, owners in run_ranks(copies, 2):
        assert set(names) == set(networks.plain(3).state_dict())
        assert all(holders == [0, 1] for holders in owners)


def test_one_rank_holds_everything() -> None:
    stage = Stage(networks.plain(3), Runtime.single("cpu"))
    assert list(stage.state_dict()) == list(networks.plain(3).state_dict())
    assert list(stage.parts()) == ["extractor", "refiners.0", "refiners.1", "refiners.2"]


class FunctionalDropout(nn.Module):
    """Random numbers that no list of module types would find."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1, self.training)


class Recentring(nn.Module):
    """Statistics of the batch without a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def with_layer(runtime: Runtime, layer: nn.Module) -> None:
    """A step with one more layer in a sharded extractor."""
    cascade = networks.plain(2)
    extractor = nn.Sequential(cascade.extractor, layer).double()
    stage = Stage(Cascade(extractor, cascade.refiners, 3), runtime, extractor="sharded")
    ParallelEngine(stage, Objective()).step(*networks.batch(8))


def shared_parameters(runtime: Runtime, **placement: Any) -> None:
    refiner = networks.plain(1).refiners[0]
    Stage(Cascade(networks.plain(1).extractor, [refiner, refiner], 3), runtime, **placement)


def test_one_process_shares_no_parameters_either() -> None:
    """They would be updated once for each part."""
    for placement in ({}, {"placement": Copies(2, 1)}):
        with pytest.raises(
            UsageError, match="refiners.1.layers.0.weight is also a parameter of refiners.0, but the par"
        ):
            shared_parameters(Runtime.single("cpu"), **placement)


def test_a_cut_extractor_shares_no_parameters_between_layers() -> None:
    layer = nn.Linear(4, 4)
    cascade = Cascade(nn.Sequential(layer, layer), networks.plain(2).refiners, 3).double()
    with pytest.raises(UsageError, match="extractor.1.weight is also a parameter of extractor.0.*, or use extractor=r"):
        Stage(cascade, Runtime.single("cpu"), placement=make_cut("1f1b", "cut", 1, [1.0] * 2, [1.0] * 2))
    Stage(cascade, Runtime.single("cpu"))


class Tied(nn.Module):
    """A refiner that has one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layer = nn.Linear(4 + networks.CLASSES, 3), nn.Linear(3, 3)
        self.again = self.layer

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.again(self.layer(self.enter(torch.cat([features, log_belief.exp()], 1))).tanh())
        return logits


@pytest.mark.parametrize("placement", [{}, {"placement": Copies(2, 1)}], ids=["local", "bp"])
def test_parameters_tied_within_a_part_are_updated_once(placement: Any) -> None:
    with seeded(0):
        cascade = Cascade(networks.plain(1).extractor, [Tied() for _ in range(2)], 3).double()
    stage = Stage(cascade, Runtime.single("cpu"), **placement)
    engine = (BPEngine if placement else LocalEngine)(stage, Objective())
    config = OptimConfig(name="sgd", momentum=0.0, lr=0.1, epochs=1, schedule="constant")
    optimizers = Optimizers(stage.parts(), config, steps_per_epoch=1)
    before = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
    engine.step(*networks.batch(8))
    engine.clip(0.01, stage.parts())
    optimizers.update(stage.parts())
    assert "refiners.0.layer.weight" in before
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(before[name] - parameter, 0.1 * parameter.grad, atol=1e-12), name


class Auxiliary(ConcatRefiner):
    """A second output in training only, as some classifiers have."""

    def forward(self, features: Tensor, log_belief: Tensor) -> Any:
        logits = super().forward(features, log_belief[0] if isinstance(log_belief, tuple) else log_belief)
        return logits if features.is_meta else (logits, logits)


def changing_outputs(runtime: Runtime) -> None:
    with seeded(0):
        refiners = [Auxiliary(4, [7], 3).double() for _ in range(2)]
    stage = Stage(Cascade(networks.plain(1).extractor, refiners, 3), runtime)
    ParallelEngine(stage, Objective()).step(*networks.batch(4))


def unfrozen_later(runtime: Runtime) -> None:
    stage = Stage(networks.plain(2), runtime)
    stage.extractor.requires_grad_(False)  # type: ignore[union-attr]
    engine = ParallelEngine(stage, Objective())
    stage.extractor.requires_grad_(True)  # type: ignore[union-attr]
    engine.step(*networks.batch(4))


def placed(runtime: Runtime, num_refiners: int, counts: list[int] | None) -> None:
    Stage(networks.plain(num_refiners), runtime, counts=counts)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (with_layer, (nn.BatchNorm1d(4),), "or on random numbers: extractor.1 (BatchNorm1d);"),
        (
            with_layer,
            (nn.Dropout(0.1),),
            "or on random numbers: extractor.1 (Dropout);",
        ),
        (
            with_layer,
            (FunctionalDropout(),),
            "depend on the rest of the batch or on random numbers;",
        ),
        (with_layer, (Recentring(),), "depend on the rest of the batch or on random numbers;"),
        (shared_parameters, (), "refiners.1.layers.0.weight is also a parameter of refiners.0, but the parts of a"),
        (unfrozen_later, (), "requires_grad of some parameters has changed since this engine was made: make a new one"),
        (placed, (1, None), "1 refiners cannot be placed on 2 ranks, each of which needs at least one"),
        (placed, (3, [3]), "placement [3] has 1 ranks and 3 refiners, but 3 refiners go on 2 ranks"),
    ],
)
def test_messages_are_the_same_on_every_rank(function: Any, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RankError) as error:
        run_ranks(function, 2, *args)
    assert all(message in error.value.errors[rank] for rank in (0, 1)), error.value


@pytest.mark.processes
def test_a_state_of_another_shape_is_refused_before_it_is_sent() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(changing_outputs, 2, step_timeout=5)
    expected = (
        "refiner 0 returned tensors of shapes [B, 3] torch.float64 and [B, 3] torch.float64, but [B, 3] torch.float64 "
        "when its shapes were inferred: the shapes that a module returns must not depend on data or on the "
        "training mode"
    )
    assert all(expected in error.value.errors[rank] for rank in (0, 1))


def changing_later(runtime: Runtime) -> None:
    stage = Stage(networks.plain(2), runtime)
    engine = ParallelEngine(stage, Objective())
    engine.step(*networks.batch(4))
    if runtime.rank == 0:
        stage.refiners["0"].register_forward_hook(lambda module, inputs, output: (output, output))
    engine.step(*networks.batch(4))


@pytest.mark.processes
def test_also_in_a_later_step() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(changing_later, 2, step_timeout=5)
    assert "refiner 0 returned tensors of shapes [B, 3] torch.float64 and [B, 3]" in error.value.errors[0]


@pytest.mark.processes
@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.LayerNorm(4), nn.GroupNorm(2, 4)])
def test_layers_that_treat_each_sample_alone_are_welcome(layer: nn.Module) -> None:
    run_ranks(with_layer, 2, layer)


def test_teacher_passes_do_not_count_in_running_statistics() -> None:
    found = []
    for schedule in ("fused", "two_phase"):
        stage = Stage(networks.noisy(2), Runtime.single("cpu"), extractor="root")
        ParallelEngine(stage, Objective(), schedule=schedule).step(*networks.batch(8))  # type: ignore[arg-type]
        found.append(dict(stage.named_buffers()))
    assert found[0]
    assert all(torch.allclose(value.double(), found[1][name].double()) for name, value in found[0].items())
    assert all(m.track_running_stats for m in stage.modules() if isinstance(m, nn.BatchNorm1d))


def test_evaluation_leaves_every_module_in_its_mode() -> None:
    stage = Stage(networks.noisy(2), Runtime.single("cpu"), extractor="root")
    norm = next(m for m in stage.modules() if isinstance(m, nn.BatchNorm1d))
    norm.eval()
    with stage.inference_mode():
        assert not any(module.training for module in stage.modules())
    assert stage.training
    assert not norm.training, "the user's own choice is kept"
