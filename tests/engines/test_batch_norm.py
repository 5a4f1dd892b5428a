"""Batch norm over ranks, against one process that has all rows: gradients, running statistics and measures."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidpar import BPEngine, Compute, Copies, Objective, ParallelEngine, Runtime, Stage, make_cut
from sidpar.cascade.cascade import Cascade
from sidpar.models.assembly import assemble
from sidpar.models.concat_refiner import ConcatRefiner
from tests import networks
from tests.engines.test_streaming import late, streamed
from tests.harness import RankError, alone, run_ranks
from tests.oracle import TOLERANCE, check, gradients, oracle

pytestmark = pytest.mark.processes

EXTRACTORS = ("replicated", "root", "sharded")
SCHEDULES = ("fused", "two_phase")
ALL, FINAL = Objective(0.4), Objective(0.4, extractor_update="final")


def synchronised(build: Callable[[int], Cascade], runtime: Runtime, extractor: Any, **settings: Any) -> Stage:
    return Stage(build(5), runtime, extractor=extractor, sync_batchnorm=True, **settings)


def assert_same_buffers(case: str, stage: Stage, expected: dict[str, Tensor]) -> None:
    for name, buffer in stage.named_buffers():
        difference = (buffer.cpu().double() - expected[name].cpu().double()).abs().max()
        assert difference < TOLERANCE, f"{case}: {name} is off by {difference}"


def sharded(runtime: Runtime) -> int:
    """Shards of all sizes, empty ones too; the extractor sees the whole batch, whatever M."""
    cases = 0
    for size, m, schedule in product((2, 5, 8), (1, 3), SCHEDULES):
        build = networks.normalised if m == 1 else networks.normalised_extractor  # whose refiners see a microbatch
        objective = FINAL if schedule == "two_phase" and size == 5 else ALL
        x, y = networks.batch(size)
        expected = oracle(lambda: build(5), objective, x, y)  # noqa: B023
        stage = synchronised(build, runtime, "sharded")
        engine = ParallelEngine(stage, objective, schedule=schedule, microbatches=m, seed=5)  # type: ignore[arg-type]
        case = f"B={size} M={m} {schedule} {objective}"
        check(case, stage, engine, expected, x, y)
        assert_same_buffers(case, stage, expected.buffers)
        cases += 1
    return cases


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_sharded_extractor_sees_the_whole_batch(ranks: int) -> None:
    assert run_ranks(sharded, ranks) == [3 * 2 * 2] * ranks


def replicated(runtime: Runtime) -> int:
    """Shares of all sizes, replicas without rows too; with M = 1 batch norm sees the whole batch everywhere."""
    cases = 0
    for size, extractor, schedule in product((2, 5), EXTRACTORS, SCHEDULES):
        objective = FINAL if schedule == "two_phase" and size == 5 else ALL
        x, y = networks.batch(size)
        expected = oracle(lambda: networks.normalised(5), objective, x, y)
        stage = synchronised(networks.normalised, runtime, extractor)
        engine = ParallelEngine(stage, objective, schedule=schedule, seed=5)  # type: ignore[arg-type]
        case = f"B={size} {extractor} {schedule} {objective}"
        check(case, stage, engine, expected, x, y)
        assert_same_buffers(case, stage, expected.buffers)
        cases += 1
    return cases


@pytest.mark.parametrize(("replicas", "ranks"), [(2, 1), (2, 2), (3, 1)])
def test_replicas_see_the_whole_batch(replicas: int, ranks: int) -> None:
    world = replicas * ranks
    assert run_ranks(replicated, world, replicas=replicas) == [2 * 3 * 2] * world


def microbatches(runtime: Runtime) -> None:
    """Microbatch m is that of all replicas: as if one process had cut these rows together."""
    x, y = networks.batch(12)
    together = torch.tensor([0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11])  # R = 2, M = 3
    for extractor, schedule in product(("replicated", "root"), SCHEDULES):
        single = Stage(networks.normalised(5), alone(), extractor=extractor)  # type: ignore[arg-type]
        settings: Any = {"schedule": schedule, "microbatches": 3, "seed": 5}
        ParallelEngine(single, Objective(), **settings).step(x[together], y[together])
        stage = synchronised(networks.normalised, runtime, extractor)
        ParallelEngine(stage, Objective(), **settings).step(x, y)
        for name, gradient in gradients(stage).items():
            difference = (gradient - gradients(single)[name]).abs().max()
            assert difference < TOLERANCE, f"{extractor} {schedule}: {name} is off by {difference}"
        assert_same_buffers(f"{extractor} {schedule}", stage, dict(single.named_buffers()))


@pytest.mark.parametrize("ranks", [2, 4])
def test_replicas_see_a_microbatch_together(ranks: int) -> None:
    run_ranks(microbatches, ranks, replicas=2)


def streams(runtime: Runtime) -> None:
    """Ragged batches begin streams of their own; some shards are empty."""
    objective, sizes = Objective(0.4), (6, 6, 6, 5, 5, 2)
    for staleness, m in ((1, 1), (1, 3), (2, 3)):
        expected = late(lambda: networks.normalised_extractor(5), objective, sizes, staleness)
        stage = synchronised(networks.normalised_extractor, runtime, "sharded")
        streamed(stage, objective, sizes, microbatches=m, staleness=staleness)
        assert_same_state(f"S={staleness} M={m}", stage, expected)
    expected = late(lambda: networks.normalised(5), objective, sizes, 1)
    for extractor in EXTRACTORS:
        stage = synchronised(networks.normalised, runtime, extractor)
        streamed(stage, objective, sizes)
        assert_same_state(extractor, stage, expected)


def assert_same_state(case: str, stage: Stage, expected: dict[str, Tensor]) -> None:
    for name, tensor in stage.state_dict().items():
        assert (tensor.cpu().double() - expected[name].double()).abs().max() < TOLERANCE, f"{case}: {name}"


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (3, 1), (4, 2)])
def test_streams_end_with_the_weights_of_the_definition(ranks: int, replicas: int) -> None:
    run_ranks(streams, ranks, replicas=replicas)


def assert_close_by_part(case: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within TOLERANCE of the largest entry of the same part: a bias before batch norm has no gradient but rounding,
    and one that fades through a chain would pass any absolute tolerance."""
    scales: dict[str, float] = {}
    for name, gradient in expected.items():
        scales[part_of(name)] = max(scales.get(part_of(name), 0.0), gradient.abs().max().item())
    for name, gradient in found.items():
        scale = scales[part_of(name)]
        difference = (gradient - expected[name]).abs().max().item()
        assert scale > 0, f"{case}: nothing to compare for {name}"
        assert difference <= TOLERANCE * scale, f"{case}: the gradient of {name} is off by {difference} of {scale}"


def with_momentum(num_refiners: int) -> Cascade:
    """Without momentum, a forward looks at the number of batches, and DDP with checkpointing refuses what looks."""
    cascade = networks.normalised(num_refiners)
    for module in cascade.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.2
    return cascade


def part_of(name: str) -> str:
    """`extractor`, or `refiners.3`."""
    kind, number, *_ = name.split(".")
    return kind if kind == "extractor" else f"{kind}.{number}"


def data_parallel(runtime: Runtime) -> None:
    """Against one process with as many microbatches; shares of all sizes, ranks without a row too."""
    ranks = runtime.world_size
    for size, (m, checkpointing) in product((2, 5, 12), ((1, False), (2, False), (1, True))):
        if size < 2 * m:
            continue  # one process refuses a microbatch of one row
        x, y = networks.batch(size)
        single = Stage(with_momentum(3), alone(), placement=Copies(3, 1))
        BPEngine(single, Objective(), microbatches=m, checkpointing=checkpointing).step(x, y)
        stage = Stage(with_momentum(3), runtime, placement=Copies(3, ranks), sync_batchnorm=True)
        engine = BPEngine(stage, Objective(), microbatches=m, checkpointing=checkpointing)
        engine.step(x, y)
        case = f"B={size} M={m} checkpointing={checkpointing}"
        assert_close_by_part(case, gradients(stage), gradients(single))
        assert_same_buffers(case, stage, dict(single.named_buffers()))
        evaluated = runtime.sum("measures", engine.evaluate(x, y).measures())
        alike = BPEngine(single, Objective()).evaluate(x, y).measures()
        assert torch.allclose(evaluated.cpu(), alike.cpu()), case


@pytest.mark.parametrize("ranks", [2, 3])
def test_ddp_sees_a_microbatch_together(ranks: int) -> None:
    run_ranks(data_parallel, ranks)


class Checkpointed(nn.Module):
    """Computes its forward again in the backward: so its batch norms wait for the other ranks there once more."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = networks.normalised_features()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = checkpoint(self.layers, x, use_reentrant=False)
        return features


def images() -> nn.Module:
    """Convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )


def on_images() -> Cascade:
    return assemble(images, lambda: ConcatRefiner(16, [7], networks.CLASSES), networks.CLASSES, 3, seed=12).double()


def structures(runtime: Runtime) -> None:
    """Checkpointed pieces, gradients in several buckets, convolutions in NHWC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidpar.messages.gradients.BUCKET_BYTES", 256)
        x, y = networks.batch(5)
        build = partial(networks.on_features, Checkpointed, seed=10)
        expected = oracle(lambda: build(5), ALL, x, y)
        stage = synchronised(build, runtime, "sharded")
        engine = ParallelEngine(stage, ALL, microbatches=3)
        check("checkpointed", stage, engine, expected, x, y, evaluate=False)
        x = torch.randn(5, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        expected = oracle(on_images, ALL, x, y)
        for channels_last in (False, True):
            compute = Compute(channels_last=channels_last)
            stage = Stage(on_images(), runtime, extractor="sharded", compute=compute, sync_batchnorm=True)
            engine = ParallelEngine(stage, ALL, microbatches=2)
            check(f"channels_last={channels_last}", stage, engine, expected, x, y)


def test_checkpoints_buckets_and_convolutions() -> None:
    run_ranks(structures, 3)


def traffic(runtime: Runtime) -> dict[str, tuple[int, float]]:
    stage = synchronised(networks.normalised_extractor, runtime, "sharded")
    engine = ParallelEngine(stage, ALL)
    engine.step(*networks.batch(4))
    sent = {kind: (count.messages, count.bytes) for kind, count in engine.traffic.sent.items() if "norm" in kind}
    engine.evaluate(*networks.batch(4))
    assert sent == {kind: (n.messages, n.bytes) for kind, n in engine.traffic.sent.items() if "norm" in kind}
    return sent


def test_traffic_is_counted_and_evaluation_sends_nothing() -> None:
    """Two batch norms of six channels: mean, variance and count of each there, two sums back."""
    sizes = {"batch norm statistics": (2, 2 * (2 * 6 + 1) * 8.0), "batch norm gradients": (2, 2 * 2 * 6 * 8.0)}
    assert run_ranks(traffic, 2) == [sizes, sizes]


def trained(runtime: Runtime, **settings: Any) -> dict[str, Tensor]:
    """What is saved after a few steps in fp32, whatever rank it is of."""
    stage = Stage(networks.normalised(2).float(), runtime, sync_batchnorm=True, **settings)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    engine = ParallelEngine(stage, ALL)
    for size in (8, 5, 7):
        x, y = networks.batch(size)
        engine.step(x.float(), y)
        optimizer.step()
    return {name: tensor.cpu() for name, tensor in stage.state_dict().items()}


def test_statistics_are_equal_on_all_ranks_bit_for_bit() -> None:
    found = run_ranks(trained, 4, replicas=2)
    everything: dict[str, Tensor] = {}
    for state in found:
        for name, tensor in state.items():
            assert torch.equal(everything.setdefault(name, tensor), tensor), name
    assert set(everything) == set(networks.normalised(2).state_dict())
    networks.normalised(2).float().load_state_dict(everything)


def one_process() -> Stage:
    return Stage(networks.normalised(2), alone(), sync_batchnorm=True)


def test_in_one_process_there_is_nothing_to_share() -> None:
    stage = one_process()
    assert not stage.shared_norms
    assert type(stage.get_submodule("extractor.1")) is nn.BatchNorm1d


def without(runtime: Runtime) -> None:
    ParallelEngine(Stage(networks.normalised(4), runtime), ALL).step(*networks.batch(8))


def with_dropout(runtime: Runtime) -> None:
    ParallelEngine(synchronised(networks.noisy, runtime, "sharded"), ALL).step(*networks.batch(8))


def one_row(runtime: Runtime) -> None:
    ParallelEngine(synchronised(networks.normalised, runtime, "sharded"), ALL).step(*networks.batch(1))


def pipeline(runtime: Runtime) -> None:
    cut = make_cut("1f1b", "root", 2, [1.0], [1.0] * 5)
    Stage(networks.normalised(5), runtime, placement=cut, sync_batchnorm=True)


def on_one_rank(runtime: Runtime) -> None:
    stage = Stage(networks.normalised(4), runtime, extractor="root", sync_batchnorm=runtime.rank == 0)
    ParallelEngine(stage, ALL).step(*networks.batch(8))


def stacked(runtime: Runtime) -> None:
    stage = synchronised(networks.normalised, runtime, "sharded")
    ParallelEngine(stage, ALL, refiner_execution="stacked").step(*networks.batch(8))


def in_two_parts(runtime: Runtime) -> None:
    norm = nn.BatchNorm1d(4, affine=False)
    cascade = networks.plain(2).float()
    refiners = [Normed(norm, refiner) for refiner in cascade.refiners]
    Stage(Cascade(cascade.extractor, refiners, networks.CLASSES), runtime, sync_batchnorm=True)


class Normed(nn.Module):
    """A refiner of normalised features."""

    def __init__(self, norm: nn.Module, refiner: nn.Module) -> None:
        super().__init__()
        self.norm, self.refiner = norm, refiner

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        logits: Tensor = self.refiner(self.norm(features), log_belief)
        return logits


@pytest.mark.parametrize(
    ("function", "replicas", "message"),
    [
        (without, 1, "such as GroupNorm; or set parallel.sync_batchnorm=true, for the statistics of all ranks"),
        (with_dropout, 1, "depend on the rest of the batch or on random numbers: extractor.2 (Dropout);"),
        (one_row, 1, "the extractor does not take inputs of shape [B, *[5]], tried with B=1: Expected more than 1 v"),
        (one_row, 2, "the extractor does not take inputs of shape [B, *[5]], tried with B=1: Expected more than 1 v"),
        (pipeline, 1, "a pipeline of backpropagation divides no microbatch among ranks, so there are no statistics to"),
        (on_one_rank, 2, "the ranks disagree on the engine; start them all alike. sync_batchnorm: rank 0 has ['e"),
        (stacked, 2, "refiners that run at once send nothing within a forward, so their batch norms cannot take"),
        (in_two_parts, 2, "refiners.1.norm is also a batch norm of refiners.0, and parts of a cascade may share their"),
    ],
)
def test_messages_on_every_rank(function: Any, replicas: int, message: str) -> None:
    with pytest.raises(RankError) as failure:
        run_ranks(function, 2, replicas=replicas, step_timeout=10)
    assert set(failure.value.errors) == {0, 1}
    assert all("UsageError: " in text and message in text for text in failure.value.errors.values()), failure.value
