"""A rank that is given the inputs of the rows that it needs alone does bit for bit what it does with whole batches."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import (
    BPEngine,
    Copies,
    InputRows,
    LocalEngine,
    Objective,
    ParallelEngine,
    PipelineEngine,
    Runtime,
    Stage,
    StreamingEngine,
    UsageError,
    make_cut,
)
from sidpar.engines.base import Engine
from sidpar.stages.rows_on_ranks import RowsOnRanks
from tests import networks
from tests.engines.own_rules import Contrast
from tests.harness import RankError, alone, run_ranks
from tests.oracle import gradients

pytestmark = pytest.mark.processes

EXTRACTORS: Any = ("replicated", "root", "sharded")
SCHEDULES: Any = ("fused", "two_phase")
Make = Callable[[Runtime], Engine]


def on_ranks(function: Callable[..., Any], ranks: int, *args: Any, replicas: int = 1) -> list[Any]:
    """`run_ranks`, with inputs whose rows are as long as those of images: some multiple of 64 bytes. A matrix product
    may round differently where rows begin elsewhere."""
    return run_ranks(with_long_rows, ranks, function, *args, replicas=replicas)


def with_long_rows(runtime: Runtime, function: Callable[..., Any], *args: Any) -> Any:
    networks.INPUTS = 8
    return function(runtime, *args)


def needed(engine: Engine, x: Tensor, *, training: bool) -> InputRows:
    rows = engine.rows_needed(len(x), training=training)
    return InputRows(x[list(rows)], rows, len(x))


def compare(case: str, make: Make, runtime: Runtime, sizes: tuple[int, ...]) -> None:
    """Gradients, measures and statistics of steps and evaluations on batches of these sizes."""
    whole, partly = make(runtime), make(runtime)
    for size in sizes:
        x, y = networks.batch(size)
        expected, found = whole.step(x, y), partly.step(needed(partly, x, training=True), y)
        same(f"{case}, B={size}: measures", found.measures(), expected.measures())
        for name, gradient in gradients(whole.stage).items():
            same(f"{case}, B={size}: {name}", gradients(partly.stage)[name], gradient)
        expected, found = whole.evaluate(x, y), partly.evaluate(needed(partly, x, training=False), y)
        same(f"{case}, B={size}: measures in evaluation", found.measures(), expected.measures())
    for (name, buffer), other in zip(whole.stage.named_buffers(), partly.stage.buffers(), strict=True):
        same(f"{case}: {name}", other, buffer)


def same(what: str, found: Tensor, expected: Tensor) -> None:
    assert torch.equal(found, expected), what


def engines() -> Iterator[tuple[str, Make]]:
    """Every placement and schedule of local learning."""
    for extractor, schedule, m in product(EXTRACTORS, SCHEDULES, (1, 3)):

        def make(runtime: Runtime, extractor: Any = extractor, schedule: Any = schedule, m: int = m) -> Engine:
            stage = Stage(networks.plain(5), runtime, extractor=extractor)
            return ParallelEngine(stage, Objective(0.4), schedule=schedule, microbatches=m, seed=5)

        yield f"{extractor} {schedule} M={m}", make


def local_learning(runtime: Runtime) -> int:
    cases = 0
    for case, make in engines():
        compare(case, make, runtime, (12, 7, 2, 1))
        cases += 1
    return cases


@pytest.mark.parametrize(("ranks", "replicas"), [(1, 1), (3, 1), (4, 2), (2, 2)])
def test_local_learning(ranks: int, replicas: int) -> None:
    """Also where a rank's shard is empty, and where a replica has no row of its own."""
    assert on_ranks(local_learning, ranks, replicas=replicas) == [12] * ranks


def shared_statistics(runtime: Runtime) -> None:
    """A rank without a shard still takes part in the extractor's statistics, with a row that does not count."""
    for extractor, m in product(EXTRACTORS, (1, 3)):

        def make(runtime: Runtime, extractor: Any = extractor, m: int = m) -> Engine:
            stage = Stage(networks.normalised_extractor(5), runtime, extractor=extractor, sync_batchnorm=True)
            return ParallelEngine(stage, Objective(0.4), microbatches=m, seed=5)

        compare(f"{extractor} M={m}", make, runtime, (12, 7, 2) if m == 1 else (12, 7))


@pytest.mark.parametrize(("ranks", "replicas"), [(3, 1), (4, 2)])
def test_shared_statistics(ranks: int, replicas: int) -> None:
    on_ranks(shared_statistics, ranks, replicas=replicas)


def backpropagation(runtime: Runtime) -> None:
    ranks = runtime.world_size
    for m in (1, 3):

        def ddp(runtime: Runtime, m: int = m) -> Engine:
            return BPEngine(Stage(networks.plain(4), runtime, placement=Copies(4, ranks)), Objective(), microbatches=m)

        compare(f"ddp M={m}", ddp, runtime, (12, 7, 2, 1))
    for schedule, extractor in (("1f1b", "root"), ("gpipe", "cut"), ("interleaved", "root")):

        def pipeline(runtime: Runtime, schedule: Any = schedule, extractor: Any = extractor) -> Engine:
            layers = 3 if extractor == "cut" else 1
            cut = make_cut(schedule, extractor, ranks, [1.0] * layers, [1.0] * 6, by_cost=False)
            stage = Stage(networks.plain(6), runtime, placement=cut)
            return PipelineEngine(stage, Objective(), schedule=schedule, microbatches=ranks)

        compare(f"{schedule} {extractor}", pipeline, runtime, (12, 7))


@pytest.mark.parametrize("ranks", [2, 3])
def test_backpropagation(ranks: int) -> None:
    on_ranks(backpropagation, ranks)


def rules_that_make_rows(runtime: Runtime) -> None:
    """They may look at all rows, so every rank has those of its replica."""
    for extractor in EXTRACTORS:

        def make(runtime: Runtime, extractor: Any = extractor) -> Engine:
            stage = Stage(networks.with_float_state(4), runtime, extractor=extractor)
            return ParallelEngine(stage, Contrast(Objective()), microbatches=2, seed=5)

        share = range(4) if runtime.replica == 0 else range(4, 7)
        assert list(make(runtime).rows_needed(7, training=True)) == list(share)
        compare(extractor, make, runtime, (7, 12))


@pytest.mark.parametrize(("ranks", "replicas"), [(4, 2)])
def test_rules_that_make_rows(ranks: int, replicas: int) -> None:
    on_ranks(rules_that_make_rows, ranks, replicas=replicas)


def streams(runtime: Runtime) -> None:
    """The weights after a stream with ragged batches and diagnoses."""
    for extractor, m in product(EXTRACTORS, (1, 3)):
        weights = []
        for in_part in (False, True):
            stage = Stage(networks.plain(5), runtime, extractor=extractor)
            engine = StreamingEngine(stage, Objective(0.4), microbatches=m, diagnose_every=2, seed=5)
            optimizer = torch.optim.SGD(stage.parameters(), lr=0.05, momentum=0.9)
            batches: list[Any] = [networks.batch(size) for size in (6, 6, 6, 6, 5, 5, 1)]
            if in_part:
                batches = [(needed(engine, x, training=True), y) for x, y in batches]
            results = list(engine.train(batches, lambda parts, o=optimizer: o.step()))  # type: ignore[misc]
            assert any(result.diagnosis is not None for result in results)
            weights.append([parameter.detach() for parameter in stage.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True)), f"{extractor} M={m}"


@pytest.mark.parametrize(("ranks", "replicas"), [(3, 1), (4, 2)])
def test_streams(ranks: int, replicas: int) -> None:
    on_ranks(streams, ranks, replicas=replicas)


def rows_of(runtime: Runtime, extractor: Any, m: int) -> tuple[list[int], list[int]]:
    engine = ParallelEngine(Stage(networks.plain(4), runtime, extractor=extractor), Objective(), microbatches=m)
    return list(engine.rows_needed(10, training=True)), list(engine.rows_needed(10, training=False))


@pytest.mark.parametrize(
    ("extractor", "training", "evaluation"),
    [
        ("replicated", [[0, 1, 2, 3, 4]] * 2 + [[5, 6, 7, 8, 9]] * 2, [[0, 1, 2, 3, 4]] * 2 + [[5, 6, 7, 8, 9]] * 2),
        ("root", [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9], []], [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9], []]),
        ("sharded", [[0, 1, 3], [2, 4], [5, 6, 8], [7, 9]], [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]),
    ],
)
def test_which_rows_are_needed(extractor: str, training: list[list[int]], evaluation: list[list[int]]) -> None:
    """Of 10 rows, by 2 replicas of 2 ranks, in 2 microbatches of 3 and 2 rows: shards are of each microbatch."""
    found = on_ranks(rows_of, 4, extractor, 2, replicas=2)
    assert [rows for rows, _ in found] == training
    assert [rows for _, rows in found] == evaluation


class Looks(nn.Module):
    """Looks at the data, so that shapes are taken from real rows; wants rows in pairs, if so."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.layer, self.pairs = nn.Linear(networks.INPUTS, 4), pairs

    def forward(self, x: Tensor) -> Tensor:
        if self.pairs and len(x) % 2:
            raise ValueError("rows come in pairs")
        if x.abs().sum(1).min() == 0:
            raise ValueError("a row of zeros is no row of the batch")
        found: Tensor = self.layer(x).tanh()
        return found


def trials(runtime: Runtime) -> None:
    """The trial before the first step sees rows of the batch, whoever has them."""
    for extractor, pairs in product(EXTRACTORS, (False, True)):

        def make(runtime: Runtime, extractor: Any = extractor, pairs: bool = pairs) -> Engine:
            cascade = networks.on_features(lambda: Looks(pairs), 4, seed=1)
            return ParallelEngine(Stage(cascade, runtime, extractor=extractor), Objective(), seed=5)

        compare(f"{extractor} pairs={pairs}", make, runtime, (16, 8))
    if runtime.num_replicas == 1:

        def ddp(runtime: Runtime) -> Engine:
            cascade = networks.on_features(lambda: Looks(False), 4, seed=1)
            return BPEngine(Stage(cascade, runtime, placement=Copies(4, runtime.world_size)), Objective())

        compare("ddp", ddp, runtime, (16, 7, 1))


@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (4, 2)])
def test_trials_see_real_rows(ranks: int, replicas: int) -> None:
    on_ranks(trials, ranks, replicas=replicas)


def put_together(runtime: Runtime) -> None:
    stage = Stage(networks.plain(3), runtime)
    x, _ = networks.batch(8)
    rows = [[0, 3, 6, 7], [1, 4], [2, 5]]
    for here in (x[rows[runtime.rank]], x):  # a rank that has all rows may be among them
        found = RowsOnRanks(stage, here, 8, rows)
        assert (len(found), found.shape, found.dtype) == (8, x.shape, x.dtype)
        for wanted in (slice(3), slice(-3, None), slice(None), slice(2, 5), slice(1, 2)):
            assert torch.equal(found[wanted], x[wanted])


def test_rows_are_put_together() -> None:
    on_ranks(put_together, 3)


def normalised(runtime: Runtime, in_part: bool) -> str:
    """Batch norm in a sharded extractor, found out from rows of all ranks."""
    cascade = networks.on_features(lambda: nn.Sequential(nn.Linear(networks.INPUTS, 4), nn.BatchNorm1d(4)), 4, seed=1)
    engine = ParallelEngine(Stage(cascade, runtime), Objective())
    x, y = networks.batch(8)
    with pytest.raises(UsageError) as failure:
        engine.step(needed(engine, x, training=True) if in_part else x, y)
    return str(failure.value)


def test_batch_norm_is_found_out() -> None:
    found = {said for in_part in (False, True) for said in on_ranks(normalised, 2, in_part)}
    (said,) = found
    assert "the extractor's features of a sample depend on the rest of the batch" in said


def spoiled(runtime: Runtime, how: str) -> None:
    engine = ParallelEngine(Stage(networks.plain(4), runtime), Objective())
    x, y = networks.batch(8)
    rows = list(engine.rows_needed(8, training=True))
    if runtime.rank == 1:
        if how == "rows":
            rows = [0, 1, 4, 6, 7]
        if how == "shape":
            x = x[:, :3]
        if how == "labels":
            y = y.roll(1)
    engine.step(InputRows(x[rows], rows, 8), y)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "rows",
            "of a batch of 8, this rank needs the inputs of rows 4..7, but is given rows 0..1, 4, 6..7: give it those "
            "that engine.rows_needed tells",
        ),
        ("shape", "the ranks disagree on the shapes; start them all alike. x: rank 0 has '[8, 8] torch.float64', rank"),
        ("labels", "the ranks disagree on the shapes; start them all alike. labels: rank 0 has"),
    ],
)
def test_messages(how: str, message: str) -> None:
    with pytest.raises(RankError) as caught:
        on_ranks(spoiled, 2, how)
    for rank in (0, 1):
        assert message in caught.value.errors[rank]


def test_rows_that_are_none() -> None:
    x = torch.zeros(2, 3)
    for rows in ([0], [1, 0], [1, 1], [0, 4], [-1, 0]):
        with pytest.raises(UsageError, match=r"InputRows needs the numbers of its 2 rows, ascending within 0..3, got"):
            InputRows(x, rows, 4)
    many = InputRows(torch.zeros(8, 3), range(0, 16, 2), 16)
    with pytest.raises(UsageError, match=r"given rows 0, 2, 4, 6, 8, ... \(8 in all\): give it"):
        many.take([1])


def test_one_process_takes_all_rows() -> None:
    """Given as rows too, and refused where some are missing."""
    x, y = networks.batch(6)
    engine = LocalEngine(Stage(networks.plain(3), alone()), Objective(), seed=5)
    assert list(engine.rows_needed(6, training=True)) == list(range(6))
    expected = engine.step(x, y).measures()
    again = LocalEngine(Stage(networks.plain(3), alone()), Objective(), seed=5)
    assert torch.equal(again.step(InputRows(x, range(6), 6), y).measures(), expected)
    with pytest.raises(UsageError, match=r"needs the inputs of rows 0..5, but is given rows 0..4: give it those"):
        again.step(InputRows(x[:5], range(5), 6), y)
