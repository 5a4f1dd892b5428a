"""The gradient of every parameter on every rank equals the local oracle's, in float64 within 1e-10.

Compared parameter by parameter, because a sum over all of them would not see two refiners' gradients swapped. Each
spawn of ranks runs a whole grid; a failure names its case.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import Compute, Objective, ParallelEngine, Runtime, Stage
from sidpar.cascade.cascade import Cascade
from sidpar.config.groups.optim import OptimConfig
from sidpar.rules import RULES, rule_of
from sidpar.training.optim import Optimizers
from tests import networks
from tests.engines.own_rules import Contrast, Spread
from tests.harness import RankError, run_ranks
from tests.oracle import check, gradients, oracle

pytestmark = [pytest.mark.processes, pytest.mark.long]

EXTRACTORS = ("replicated", "root", "sharded")
SCHEDULES = ("fused", "two_phase")
UPDATES = ("all", "final", "frozen")


def objectives(num_refiners: int, ranks: int) -> Iterator[Objective]:
    """SID: both directions, a list of alphas (on few ranks one for all as well), all updates of the extractor."""
    for alpha, update in product((0.3, several(num_refiners)) if ranks <= 2 else (several(num_refiners),), UPDATES):
        yield Objective(alpha, "forward", 0.0, update)  # type: ignore[arg-type]
        yield Objective(alpha, "reverse", 0.1, update)  # type: ignore[arg-type]


def several(num_refiners: int) -> list[float]:
    return [0.2 + 0.7 * i / num_refiners for i in range(num_refiners)]


def cases(ranks: int) -> Iterator[tuple[int, int, Objective]]:
    """Refiners, batch and objective: each rule with every shape, and SID with every objective at one shape."""
    for num_refiners, size, rule in product((ranks, 2 * ranks + 1), (2, 7, 12), RULES):
        alpha = several(num_refiners) if rule == "sid" else 0.5
        yield num_refiners, size, Objective(alpha, label_smoothing=0.1, rule=rule)
    for objective in objectives(2 * ranks + 1, ranks):
        yield 2 * ranks + 1, 7, objective


def grid(runtime: Runtime) -> int:
    """All cases of the plain network on this world; their number."""
    done = 0
    for num_refiners, size, objective in cases(runtime.world_size):
        x, y = networks.batch(size)
        reference = oracle(lambda n=num_refiners: networks.plain(n), objective, x, y)  # type: ignore[misc]
        for extractor in EXTRACTORS:
            stage = Stage(networks.plain(num_refiners), runtime, extractor=extractor)  # type: ignore[arg-type]
            for schedule, microbatches in product(SCHEDULES, (1, 3)):
                engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=microbatches, seed=5)  # type: ignore[arg-type]
                case = f"L={num_refiners} B={size} M={microbatches} {extractor} {schedule} {objective}"
                once = schedule == "fused" and microbatches == 1  # an evaluation depends on neither
                check(case, stage, engine, reference, x, y, evaluate=once)
                done += 1
    return done


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_equal_the_oracle(ranks: int) -> None:
    """Localises errors in schedule, transport and reduction: same modules, same maths, only the placement differs."""
    expected = (2 * 3 * len(RULES) + (12 if ranks <= 2 else 6)) * 3 * 2 * 2
    assert run_ranks(grid, ranks, timeout=400) == [expected] * ranks


def own_rules(runtime: Runtime) -> None:
    """Rows that become several, kept activations, losses that read features; and a loss that is no sum over rows."""
    x, y = networks.batch(7)
    for rule, build, microbatches in (
        (Contrast(Objective()), networks.with_float_state, (1, 3)),
        (Spread(Objective()), networks.plain, (1,)),
    ):
        reference = oracle(lambda b=build: b(5), rule, x, y)  # type: ignore[misc]
        for extractor, schedule, m in product(EXTRACTORS, SCHEDULES, microbatches):
            stage = Stage(build(5), runtime, extractor=extractor)  # type: ignore[arg-type]
            engine = ParallelEngine(stage, rule, schedule=schedule, microbatches=m, seed=5)  # type: ignore[arg-type]
            check(f"{rule.name} {extractor} {schedule} M={m}", stage, engine, reference, x, y)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rules_of_ones_own(ranks: int) -> None:
    run_ranks(own_rules, ranks)


def replicated_rules(runtime: Runtime) -> None:
    """Random numbers and entered rows are those of the rows, whichever replica has them."""
    x, y = networks.batch(7)
    rules = [rule_of(Objective(rule=rule, label_smoothing=0.1)) for rule in RULES]
    for rule, build in [
        *((rule, networks.plain) for rule in rules),
        (Contrast(Objective()), networks.with_float_state),
    ]:
        reference = oracle(lambda b=build: b(3), rule, x, y)  # type: ignore[misc]
        for extractor, schedule in product(EXTRACTORS, SCHEDULES):
            stage = Stage(build(3), runtime, extractor=extractor)  # type: ignore[arg-type]
            engine = ParallelEngine(stage, rule, schedule=schedule, microbatches=2, seed=5)  # type: ignore[arg-type]
            check(f"{rule.name} {extractor} {schedule}", stage, engine, reference, x, y)


def test_rules_on_replicas() -> None:
    run_ranks(replicated_rules, 4, replicas=2)


@pytest.mark.parametrize(("replicas", "microbatches", "name"), [(1, 2, "microbatches=2"), (2, 1, "replicas=2")])
def test_a_loss_that_is_no_sum_refuses_parts_of_a_batch(replicas: int, microbatches: int, name: str) -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(spread_in_parts, 2, microbatches, replicas=replicas)
    for rank in (0, 1):
        assert (
            f"{name} cuts a batch into parts, but the loss of objective.rule=spread is not" in caught.value.errors[rank]
        )


def spread_in_parts(runtime: Runtime, microbatches: int) -> None:
    ParallelEngine(Stage(networks.plain(4), runtime), Spread(Objective()), microbatches=microbatches)


def structures(runtime: Runtime) -> None:
    """Tuples of features, hidden activations in the state, beliefs per token; uneven placements given by hand."""
    counts = [3] + [1] * (runtime.world_size - 1)
    builds: list[tuple[str, Callable[[int], Cascade], int | None]] = [
        ("hidden", networks.with_hidden_state, None),
        ("tokens", networks.tokens, networks.INPUTS),
    ]
    for (name, build, tokens), update in product(builds, ("all", "final", "frozen")):
        x, y = networks.batch(7, tokens)
        objective = Objective(0.4, extractor_update=update)  # type: ignore[arg-type]
        reference = oracle(lambda b=build: b(sum(counts)), objective, x, y)  # type: ignore[misc]
        for extractor, schedule, microbatches in product(EXTRACTORS, SCHEDULES, (1, 3)):
            stage = Stage(build(sum(counts)), runtime, extractor=extractor, counts=counts)  # type: ignore[arg-type]
            engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=microbatches)  # type: ignore[arg-type]
            check(f"{name} {extractor} {schedule} M={microbatches} {update}", stage, engine, reference, x, y)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_structure_of_features_and_state(ranks: int) -> None:
    run_ranks(structures, ranks)


def stacked(runtime: Runtime) -> None:
    """All refiners of a rank at once: the same gradients, wherever the extractor is, with and without hidden states."""
    builds: list[tuple[str, Callable[[int], Cascade], int | None]] = [
        ("plain", networks.plain, None),
        ("hidden", networks.with_hidden_state, None),
        ("tokens", networks.tokens, networks.INPUTS),
    ]
    for (name, build, tokens), update, kl in product(builds, ("all", "final", "frozen"), ("forward", "reverse")):
        x, y = networks.batch(7, tokens)
        objective = Objective([0.2, 0.4, 0.6, 0.8, 0.9], kl, 0.1, update)  # type: ignore[arg-type]
        stacked_like_the_oracle(runtime, name, build, objective, x, y)
    for rule in RULES:
        x, y = networks.batch(7)
        stacked_like_the_oracle(runtime, rule, networks.plain, Objective(rule=rule, label_smoothing=0.1), x, y)


def stacked_like_the_oracle(
    runtime: Runtime, name: str, build: Callable[[int], Cascade], objective: Objective, x: Tensor, y: Tensor
) -> None:
    reference = oracle(lambda: build(5), objective, x, y)
    for extractor in EXTRACTORS:
        stage = Stage(build(5), runtime, extractor=extractor)  # type: ignore[arg-type]
        for schedule, microbatches in product(SCHEDULES, (1, 3)):
            settings: Any = {"schedule": schedule, "microbatches": microbatches, "seed": 5}
            engine = ParallelEngine(stage, objective, refiner_execution="stacked", **settings)
            case = f"{name} {extractor} {schedule} M={microbatches} {objective}"
            check(case, stage, engine, reference, x, y, evaluate=False)


@pytest.mark.parametrize("ranks", [1, 2])
def test_stacked_refiners_get_the_same_gradients(ranks: int) -> None:
    run_ranks(stacked, ranks)


def unequal(runtime: Runtime) -> None:
    cascade = networks.plain(4)
    cascade.refiners[3] = networks.plain(1).refiners[0].layers[0]  # type: ignore[assignment, index, union-attr]
    ParallelEngine(Stage(cascade, runtime), Objective(), refiner_execution="stacked")


def test_unequal_refiners_of_any_rank_are_refused_on_every_rank() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(unequal, 2)
    for rank in (0, 1):
        assert "refiner 3 differs from refiner 2" in caught.value.errors[rank]
        assert "parallel.refiner_execution=loop" in caught.value.errors[rank]


def partly_noisy(runtime: Runtime) -> None:
    cascade = networks.plain(4)
    for i, refiner in enumerate(networks.noisy(2).refiners, 2):
        cascade.refiners[i] = refiner
    ParallelEngine(Stage(cascade, runtime), Objective(), refiner_execution="stacked").step(*networks.batch(8))


def test_refiners_that_one_rank_cannot_stack_are_refused_on_every_rank() -> None:
    """Found by trying, where only the rank that holds them can try."""
    with pytest.raises(RankError) as caught:
        run_ranks(partly_noisy, 2)
    for rank in (0, 1):
        assert "UsageError: refiner 2 writes buffers in its forward (layers.1.running_mean" in caught.value.errors[rank]


def randomness(runtime: Runtime) -> None:
    """Masks depend on (seed, part, step), so even dropout and batch norm agree when M = 1; statistics count once."""
    x, y = networks.batch(8)
    for update in ("all", "final", "frozen"):
        objective = Objective(0.4, extractor_update=update)  # type: ignore[arg-type]
        reference = oracle(lambda: networks.noisy(5), objective, x, y)
        for extractor, schedule in product(("replicated", "root"), SCHEDULES):
            stage = Stage(networks.noisy(5), runtime, extractor=extractor)  # type: ignore[arg-type]
            engine = ParallelEngine(stage, objective, schedule=schedule, seed=5)  # type: ignore[arg-type]
            check(f"{extractor} {schedule} {update}", stage, engine, reference, x, y)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_random_masks_and_statistics_do_not_depend_on_ranks(ranks: int) -> None:
    run_ranks(randomness, ranks)


def masked_gradients(runtime: Runtime) -> dict[str, Tensor]:
    """Two steps with dropout in the refiners, behind a sharded extractor, M = 3."""
    stage = Stage(networks.with_dropout(5), runtime, extractor="sharded")
    engine = ParallelEngine(stage, Objective(), microbatches=3, seed=2)
    for _ in range(2):
        engine.step(*networks.batch(8))
    return gradients(stage)


def test_masks_do_not_depend_on_ranks_with_microbatches_either() -> None:
    """At one M, the masks of any number of ranks are those of one."""
    (alone,) = run_ranks(masked_gradients, 1)
    for ranks in (2, 3):
        for found in run_ranks(masked_gradients, ranks):
            for name, gradient in found.items():
                assert (gradient - alone[name]).abs().max() < 1e-10, name


def trained_extractor(runtime: Runtime, extractor: str) -> dict[str, Tensor]:
    """After five steps of Adam with weight decay and clipping."""
    stage = Stage(networks.plain(4).float(), runtime, extractor=extractor)  # type: ignore[arg-type]
    engine = ParallelEngine(stage, Objective(), microbatches=2)
    config = OptimConfig(epochs=1, lr=0.01, weight_decay=0.1, schedule="constant")
    optimizers = Optimizers(stage.parts(), config, steps_per_epoch=5)
    for size in (8, 7, 8, 5, 8):
        x, y = networks.batch(size)
        engine.step(x.float(), y)
        engine.clip(0.1, stage.parts())
        optimizers.update(stage.parts())
    assert stage.extractor is not None
    return dict(stage.extractor.state_dict())


@pytest.mark.parametrize("extractor", ["replicated", "sharded"])
def test_replicas_of_the_extractor_stay_equal_bit_for_bit(extractor: str) -> None:
    first, *others = run_ranks(trained_extractor, 3, extractor)
    assert others
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def bucketed_and_channels_last(runtime: Runtime) -> None:
    """A convolutional extractor in NHWC, its gradients in several buckets, over several steps of one engine."""
    from_nchw = torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    reference = oracle(networks.convolutional, Objective(), from_nchw, y)
    for extractor, channels_last in product(("replicated", "sharded"), (False, True)):
        stage = Stage(
            networks.convolutional(),
            runtime,
            extractor=extractor,  # type: ignore[arg-type]
            compute=Compute(channels_last=channels_last),
        )
        engine = ParallelEngine(stage, Objective(), microbatches=2)
        for _ in range(3):
            check(f"{extractor} channels_last={channels_last}", stage, engine, reference, from_nchw, y)


def test_buckets_and_memory_formats() -> None:
    run_ranks(small_buckets, 2)


def small_buckets(runtime: Runtime) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.messages.gradients.BUCKET_BYTES", 256)
        bucketed_and_channels_last(runtime)
