"""Backpropagation in one process and by DDP, against a loop in plain PyTorch."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from sidpar import BPEngine, Objective, Runtime, Stage, UsageError
from sidpar.cascade.cascade import Cascade
from sidpar.cascade.specs import Skeleton
from sidpar.models.concat_refiner import ConcatRefiner
from sidpar.rules.kl import kl_to, target_of
from sidpar.schedules.placement import Copies
from sidpar.seeding import seeded
from tests import networks
from tests.engines.modules import quirks
from tests.harness import RankError, run_ranks
from tests.oracle import assert_close_gradients, gradients

OBJECTIVES = (Objective(), Objective(kl="reverse", label_smoothing=0.1))
NETWORKS: list[Callable[[], Cascade]] = [
    lambda: networks.plain(4),
    lambda: networks.with_float_state(3),
    lambda: networks.residual(3),
]


def plain_backpropagation(
    cascade: Cascade, objective: Objective, x: Tensor, y: Tensor, deep_supervision: bool = False
) -> dict[str, Tensor]:
    """Gradients of the last loss, or of all, with one graph from end to end: independent of every engine."""
    log_beliefs = [state[0] for state in cascade.states(x)][1:]
    target = target_of(objective, y, cascade.num_classes, torch.float64)
    losses = [kl_to(log_p, target, objective.kl).mean() for log_p in log_beliefs]
    (torch.stack(losses).sum() if deep_supervision else losses[-1]).backward()
    return {name: p.grad for name, p in cascade.named_parameters() if p.grad is not None}


def whole(cascade: Cascade, runtime: Runtime) -> Stage:
    return Stage(cascade, runtime, placement=Copies(len(cascade.refiners), runtime.world_size))


def grid(runtime: Runtime) -> None:
    for build, objective, size, deep in product(NETWORKS, OBJECTIVES, (2, 7, 12), (False, True)):
        x, y = networks.batch(size)
        expected = plain_backpropagation(build(), objective, x, y, deep)
        for microbatches, checkpointing in ((1, False), (3, False), (2, True)):
            stage = whole(build(), runtime)
            engine = BPEngine(
                stage, objective, microbatches=microbatches, checkpointing=checkpointing, deep_supervision=deep
            )
            result = engine.step(x, y)
            case = f"B={size} M={microbatches} checkpointing={checkpointing} deep={deep} {objective}"
            assert_close_gradients(case, gradients(stage), expected)
            assert result.samples == size
            evaluated = engine.evaluate(x, y)
            for found in (result, evaluated):
                measures = runtime.sum("measures", found.measures())
                log_belief = build()(x).log()
                target = target_of(objective, y, 3, torch.float64)
                assert measures[-1, 1].item() == pytest.approx(kl_to(log_belief, target, objective.kl).sum().item()), (
                    case
                )


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_equal_a_plain_loop(ranks: int) -> None:
    """Also where a rank has no share of the batch (B = 2 on 4 ranks)."""
    run_ranks(grid, ranks)


class WithSpare(ConcatRefiner):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__(4, [7], networks.CLASSES)
        self.spare = nn.Linear(2, 2)


def with_spare() -> Cascade:
    cascade = networks.plain(3)
    with seeded(5):
        cascade.refiners[1] = WithSpare().double()
    return cascade


def spare(runtime: Runtime) -> str:
    """Checks the gradients of several steps; returns what is said with checkpointing."""
    x, y = networks.batch(12)
    for microbatches, deep in product((1, 3), (False, True)):
        stage = whole(with_spare(), runtime)
        engine = BPEngine(stage, Objective(), microbatches=microbatches, deep_supervision=deep)
        expected = plain_backpropagation(with_spare(), Objective(), x, y, deep)
        for _ in range(3):
            engine.step(x, y)
            used = {name: gradient for name, gradient in gradients(stage).items() if "spare" not in name}
            assert_close_gradients(f"M={microbatches} deep={deep}", used, expected)
        assert all(p.grad is None for name, p in stage.named_parameters() if "spare" in name), "no optimizer moves them"
    with pytest.raises(UsageError) as refused:
        BPEngine(whole(with_spare(), runtime), Objective(), checkpointing=True).step(x, y)
    return str(refused.value)


@pytest.mark.processes
def test_ddp_takes_parameters_without_a_gradient() -> None:
    first, second = run_ranks(spare, 2)
    assert first == second
    assert "refiners.1.spare.weight gets no gradient from the loss, but DDP with bp.checkpointing=true would" in first


def test_parameters_without_a_gradient_are_found() -> None:
    """Through every path of the chain, and no others: only the heads that are trained count."""
    x, _ = networks.batch(4)
    for build in (networks.plain, networks.with_float_state, networks.residual, networks.noisy):
        assert Skeleton(build(3)).without_gradient(x, [len(build(3).refiners) - 1]) == []
    found = Skeleton(with_spare()).without_gradient(x, [2])
    assert found == ["refiners.1.spare.weight", "refiners.1.spare.bias"]
    assert all(name.startswith("refiners.2.") for name in Skeleton(networks.plain(3)).without_gradient(x, [1]))


def dropout_masks(runtime: Runtime) -> None:
    """Checkpointing draws the masks of the first pass again."""
    x, y = networks.batch(8)
    found = []
    for checkpointing in (False, True):
        stage = whole(networks.with_dropout(3), runtime)
        engine = BPEngine(stage, Objective(), checkpointing=checkpointing, seed=4)
        for _ in range(2):
            engine.step(x, y)
        found.append(gradients(stage))
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.processes
def test_checkpointing_repeats_random_masks() -> None:
    run_ranks(dropout_masks, 1)


def test_checkpointing_where_nothing_that_enters_is_trained() -> None:
    """A frozen extractor: refiner 0's features have no gradient, and its parameters have one all the same."""
    x, y = networks.batch(8)
    found = []
    for checkpointing in (False, True):
        cascade = networks.plain(3)
        cascade.extractor.requires_grad_(False)
        stage = whole(cascade, Runtime.single("cpu"))
        BPEngine(stage, Objective(), checkpointing=checkpointing).step(x, y)
        found.append({name: gradient for name, gradient in gradients(stage).items() if "refiners" in name})
    assert_close_gradients("checkpointing", found[1], found[0])


def other_masks(runtime: Runtime) -> float:
    """How alike the two ranks' log-beliefs are on two halves of a batch that are the same."""
    x, y = networks.batch(4)
    stage = whole(networks.with_dropout(2), runtime)
    result = BPEngine(stage, Objective()).step(torch.cat([x, x]), torch.cat([y, y]))
    return result.measures()[-1, 0].item()


@pytest.mark.processes
def test_every_rank_drops_something_else() -> None:
    first, second = run_ranks(other_masks, 2)
    assert first != second


def running_statistics(runtime: Runtime) -> list[float]:
    """Evaluation uses the statistics that are saved, rank 0's."""
    x, y = networks.batch(8)
    stage = whole(networks.noisy(2), runtime)
    engine = BPEngine(stage, Objective())
    engine.step(x, y)
    engine.evaluate(x, y)
    return [buffer.double().sum().item() for buffer in stage.buffers()]


@pytest.mark.processes
def test_ranks_evaluate_with_the_same_statistics() -> None:
    first, second = run_ranks(running_statistics, 2)
    assert first == second


def test_batch_norm_counts_a_checkpointed_batch_once() -> None:
    x, y = networks.batch(8)
    buffers = []
    for checkpointing in (False, True):
        stage = whole(networks.noisy(2), Runtime.single("cpu"))
        BPEngine(stage, Objective(), checkpointing=checkpointing).step(x, y)
        buffers.append(dict(stage.named_buffers()))
    for name, buffer in buffers[0].items():
        assert torch.allclose(buffer, buffers[1][name]), name


def traffic(runtime: Runtime) -> None:
    x, y = networks.batch(6)
    stage = whole(networks.plain(2), runtime)
    engine = BPEngine(stage, Objective())
    engine.step(x, y)
    size = sum(p.numel() * 8 for p in stage.parameters())
    ranks = runtime.world_size
    assert engine.traffic.sent["parameter gradients"].bytes == pytest.approx(2 * (ranks - 1) / ranks * size)


@pytest.mark.processes
def test_ddp_counts_its_traffic() -> None:
    run_ranks(traffic, 2)


def test_settings_without_meaning_are_refused() -> None:
    runtime = Runtime.single("cpu")
    with pytest.raises(UsageError, match="extractor_update=frozen"):
        BPEngine(whole(networks.plain(2), runtime), Objective(extractor_update="frozen"))
    with pytest.raises(UsageError, match="placement=Copies"):
        BPEngine(Stage(networks.plain(2), runtime), Objective())
    with pytest.raises(UsageError, match="microbatches must be at least 1, got 0"):
        BPEngine(whole(networks.plain(2), runtime), Objective(), microbatches=0)


def checkpointed(runtime: Runtime) -> None:
    stage = whole(quirks.build(["looks"], []), runtime)
    BPEngine(stage, Objective(), checkpointing=True).step(*quirks.batches(1)[0])


@pytest.mark.processes
def test_ddp_cannot_checkpoint_where_gradients_are_not_known_beforehand() -> None:
    with pytest.raises(RankError) as failure:
        run_ranks(checkpointed, 2)
    expected = "which parameters get a gradient cannot be inferred, because a forward looks at data, and DDP cannot"
    assert all(expected in failure.value.errors[rank] for rank in (0, 1))
