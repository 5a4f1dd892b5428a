"""The streaming engine against an independent account of what it should do: one process, one late update at a time."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import LocalEngine, Objective, ParallelEngine, Runtime, Stage, StreamingEngine, UsageError
from sidpar.cascade.cascade import Cascade
from sidpar.rules import RULES
from sidpar.schedules.batching import Share
from tests import networks
from tests.harness import RankError, alone, run_ranks
from tests.oracle import TOLERANCE

EXTRACTORS = ("replicated", "root", "sharded")
Sizes = tuple[int, ...]


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(list(parameters), lr=0.05, momentum=0.9)


def late(
    build: Callable[[], Cascade], objective: Objective, sizes: Sizes, staleness: int, *, prediction: bool = False
) -> dict[str, Tensor]:
    """The weights after one step per batch, by the definition: the gradient of a batch is taken at the extractor that
    knows all batches but the last `staleness`; refiners are never late. Before a batch of another size nothing is. With
    prediction, the extractor is moved on as far as `staleness` updates like the last one would."""
    stage = Stage(build(), alone())
    engine = LocalEngine(stage, objective, seed=5)
    assert stage.extractor is not None
    extractor = list(stage.extractor.parameters())
    now, refiners = sgd(extractor), sgd(stage.refiners.parameters())
    due: list[list[Tensor | None]] = []
    movement = [torch.zeros_like(p) for p in extractor]

    def apply() -> None:
        before = [p.detach().clone() for p in extractor]
        for parameter, gradient in zip(extractor, due.pop(0), strict=True):
            parameter.grad = gradient
        now.step()
        if prediction:
            movement[:] = [p.detach() - old for p, old in zip(extractor, before, strict=True)]

    def move_on(steps: int) -> None:
        with torch.no_grad():
            for parameter, way in zip(extractor, movement, strict=True):
                parameter += steps * way

    for t, size in enumerate(sizes):
        if t > 0 and sizes[t - 1] != size:
            while due:
                apply()
        elif len(due) > staleness:
            apply()
        move_on(staleness)
        engine.step(*networks.batch(size))
        move_on(-staleness)
        due.append([p.grad for p in extractor])
        refiners.step()
    while due:
        apply()
    return {name: tensor.detach().cpu().clone() for name, tensor in stage.state_dict().items()}


def streamed(stage: Stage, objective: Objective, sizes: Sizes, **settings: Any) -> StreamingEngine:
    """The engine after one step per batch."""
    engine = StreamingEngine(stage, objective, seed=5, **settings)
    parts = stage.parts()
    optimizers = {name: sgd(part.parameters()) for name, part in parts.items() if list(part.parameters())}

    def update(names: Any) -> None:
        for name in names:
            assert any(p.grad is not None for p in parts[name].parameters()), name
            optimizers[name].step()

    results = engine.train((networks.batch(size) for size in sizes), update)
    for steps, (size, result) in enumerate(zip(sizes, results, strict=True), start=1):
        assert (engine.steps, result.batch_size, result.samples) == (steps, size, size)
        own = Share(size, stage.runtime.num_replicas, stage.runtime.replica).counted
        assert result.y.tolist() == networks.batch(size)[1][own.start : own.stop].tolist()
    return engine


def compare(case: str, stage: Stage, expected: dict[str, Tensor]) -> None:
    for name, tensor in stage.state_dict().items():
        assert (tensor.cpu() - expected[name]).abs().max() < TOLERANCE, f"{case}: {name}"


def definition(runtime: Runtime) -> int:
    """Every placement of the extractor, S, M, length of the stream, and a ragged batch in the middle and at the end."""
    cases, ragged = 0, (6, 6, 6, 5, 5, 2)
    setups = [*product(((6,), (6, 6), (6, 6, 6, 6, 6), ragged), (1, 2, 4), [Objective(0.4)])]
    setups += [(ragged, 1 + k, Objective(rule=rule)) for k, rule in enumerate(RULES) if rule != "sid"]
    for sizes, staleness, objective in setups:

        def build() -> Cascade:
            return networks.plain(5)

        expected = late(build, objective, sizes, staleness)
        for extractor, m in product(EXTRACTORS, (1, 3)):
            stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
            streamed(stage, objective, sizes, microbatches=m, staleness=staleness)
            compare(f"{sizes} S={staleness} M={m} {extractor} {objective}", stage, expected)
            cases += 1
    return cases


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_the_weights_are_those_of_the_definition(ranks: int) -> None:
    assert run_ranks(definition, ranks) == [(4 * 3 + len(RULES) - 1) * 3 * 2] * ranks


def predicted(runtime: Runtime) -> None:
    """Features of the weights to come, for every placement."""
    build, objective, sizes = (lambda: networks.plain(5)), Objective(0.4), (6, 6, 6, 6, 6, 5, 5)
    for staleness in (1, 3):
        expected = late(build, objective, sizes, staleness, prediction=True)
        for extractor, m in product(EXTRACTORS, (1, 3)):
            stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
            streamed(stage, objective, sizes, microbatches=m, staleness=staleness, weight_prediction=True)
            compare(f"S={staleness} M={m} {extractor}", stage, expected)
    stage = Stage(build(), runtime)
    streamed(stage, objective, sizes, staleness=3)
    assert any((tensor - expected[name]).abs().max() > TOLERANCE for name, tensor in stage.state_dict().items())


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 3])
def test_weight_prediction(ranks: int) -> None:
    run_ranks(predicted, ranks)


def structures(runtime: Runtime) -> None:
    """Tuples of features and hidden states, final and frozen extractors, dropout and statistics at M = 1."""
    sizes = (6, 6, 6, 6)
    builds = {"hidden": lambda: networks.with_hidden_state(4), "noisy": lambda: networks.noisy(4)}
    for (name, build), update in product(builds.items(), ("all", "final", "frozen")):
        objective = Objective(0.4, extractor_update=update)  # type: ignore[arg-type]
        expected = late(build, objective, sizes, 1) if update != "frozen" else None
        for extractor in EXTRACTORS:
            if name == "noisy" and (extractor == "sharded" or update == "frozen"):
                continue  # a sharded extractor refuses batch norm
            stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
            if expected is None:
                before = {n: t.clone() for n, t in stage.state_dict().items()}
                assert stage.extractor is not None or runtime.rank > 0
                streamed_frozen(stage, objective, sizes)
                assert all(torch.equal(t, before[n]) for n, t in stage.state_dict().items() if n.startswith("extr"))
                assert not all(torch.equal(t, before[n]) for n, t in stage.state_dict().items())
                continue
            streamed(stage, objective, sizes, microbatches=1)
            compare(f"{name} {update} {extractor}", stage, expected)


def streamed_frozen(stage: Stage, objective: Objective, sizes: Sizes) -> None:
    """Nobody asks for an update of the extractor."""
    engine = StreamingEngine(stage, objective, microbatches=2)
    optimizer = sgd(stage.refiners.parameters())

    def update(names: Any) -> None:
        assert "extractor" not in names
        optimizer.step()

    assert len(list(engine.train((networks.batch(size) for size in sizes), update))) == len(sizes)


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 3])
def test_every_structure(ranks: int) -> None:
    run_ranks(structures, ranks)


def stacked(runtime: Runtime) -> None:
    """All refiners of a rank at once."""
    build, objective, sizes = (lambda: networks.plain(5)), Objective(0.4), (6, 6, 6, 5)
    expected = late(build, objective, sizes, 1)
    for extractor in EXTRACTORS:
        stage = Stage(build(), runtime, extractor=extractor)  # type: ignore[arg-type]
        streamed(stage, objective, sizes, microbatches=3, refiner_execution="stacked")
        compare(extractor, stage, expected)


@pytest.mark.processes
def test_stacked_refiners() -> None:
    run_ranks(stacked, 2)


def synchronous_steps(runtime: Runtime) -> None:
    """`step` and `evaluate` between streams are those of `ParallelEngine`, bit for bit."""
    x, y = networks.batch(6)
    for extractor in EXTRACTORS:
        stage = Stage(networks.plain(3), runtime, extractor=extractor)  # type: ignore[arg-type]
        engine = streamed(stage, Objective(), (6, 6, 6), microbatches=2)
        for p in stage.parameters():
            assert p.grad is None, "streamed gradients are forgotten"
        other = Stage(networks.plain(3), runtime, extractor=extractor)  # type: ignore[arg-type]
        other.load_state_dict(stage.state_dict())
        fused = ParallelEngine(other, Objective(), microbatches=2, seed=5)
        assert torch.equal(engine.step(x, y).measures(), fused.step(x, y).measures())
        for one, two in zip(stage.parameters(), other.parameters(), strict=True):
            assert one.grad is not None
            assert two.grad is not None
            assert torch.equal(one.grad, two.grad)
        assert torch.equal(engine.evaluate(x, y).measures(), fused.evaluate(x, y).measures())


@pytest.mark.processes
def test_between_streams_it_is_fused() -> None:
    run_ranks(synchronous_steps, 2)


def test_refusals() -> None:
    stage = Stage(networks.plain(2), Runtime.single("cpu"))
    with pytest.raises(UsageError, match="staleness must be at least 1, got 0"):
        StreamingEngine(stage, Objective(), staleness=0)
    engine = StreamingEngine(stage, Objective())
    batches = [networks.batch(4)] * 3
    results = engine.train(batches, lambda parts: None)
    next(results)
    for call in (lambda: engine.evaluate(*batches[0]), lambda: engine.step(*batches[0])):
        with pytest.raises(
            UsageError, match="train.. has not ended: updates of the extractor are in flight after step 1"
        ):
            call()
    with pytest.raises(UsageError, match="train.. has not ended"):
        next(engine.train(batches, lambda parts: None))
    list(results)
    engine.evaluate(*batches[0])


def failing_update(runtime: Runtime) -> None:
    stage = Stage(networks.plain(2), runtime)

    def update(names: Any) -> None:
        raise ValueError("the optimizer has failed")

    for _ in StreamingEngine(stage, Objective()).train([networks.batch(4)] * 3, update):
        pass


@pytest.mark.processes
def test_an_error_in_the_update_ends_every_rank() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(failing_update, 2, step_timeout=5)
    assert "rank 0 failed in step 0, in the action: update the refiners" in caught.value.errors[0]
