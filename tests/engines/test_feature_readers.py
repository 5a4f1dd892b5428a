"""Features go only to the ranks whose refiners read them; what is learned does not depend on it."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sidpar import LocalEngine, Objective, ParallelEngine, Runtime, Stage, StreamingEngine
from sidpar.cascade.cascade import Cascade
from tests import networks
from tests.harness import RankError, run_ranks
from tests.oracle import check, oracle

pytestmark = pytest.mark.processes
WIDTH, CLASSES = 5, 4


class Two(nn.Module):
    """Two features [B, WIDTH] and [B, WIDTH], and one of integers that nobody trains, [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(networks.INPUTS, WIDTH), nn.Linear(networks.INPUTS, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.one(x).tanh(), self.other(x).tanh(), x.argmax(1)


class Reader(nn.Module):
    """Reads some of the features, by number; hands on a belief and a hidden activation."""

    def __init__(self, reads: Sequence[int]) -> None:
        super().__init__()
        self.reads = reads
        self.enter = nn.Linear(CLASSES + WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Tensor]:
        log_belief, hidden = state if isinstance(state, tuple) else (state, state.new_zeros(len(state), WIDTH))
        for number in self.reads:
            feature = features[number]
            hidden = hidden + (feature if feature.is_floating_point() else feature[:, None].to(hidden.dtype))
        hidden = self.enter(torch.cat([log_belief.exp(), hidden], dim=1)).tanh()
        return self.head(hidden), hidden


def cascade(reads: Sequence[Sequence[int]]) -> Cascade:
    torch.manual_seed(3)
    return Cascade(Two(), [Reader(each) for each in reads], CLASSES).double()


def networks_of(num_refiners: int) -> dict[str, list[tuple[int, ...]]]:
    """What each refiner reads."""
    none: list[tuple[int, ...]] = [()] * num_refiners
    return {
        "the first all": [(0, 1, 2), *none[1:]],
        "the first one, the last another, all the integers": [(0, 2), *[(2,)] * (num_refiners - 2), (1, 2)],
        "the last all": [*none[1:], (0, 1, 2)],
        "half of them one, nobody another": [*[(0,)] * (num_refiners // 2), *none[num_refiners // 2 :]],
        "all all": [(0, 1, 2)] * num_refiners,
    }


def steps(runtime: Runtime) -> None:
    """One step and one evaluation."""
    x, y = networks.batch(7)
    for name, reads in networks_of(2 * runtime.world_size).items():
        reference = oracle(lambda r=reads: cascade(r), Objective(0.4), x, y)  # type: ignore[misc]
        for extractor, schedule, m in product(("replicated", "root", "sharded"), ("fused", "two_phase"), (1, 3)):
            stage = Stage(cascade(reads), runtime, extractor=extractor)
            engine = ParallelEngine(stage, Objective(0.4), schedule=schedule, microbatches=m, seed=5)
            check(f"{name}: {extractor} {schedule} M={m}", stage, engine, reference, x, y)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_equal_the_oracle(ranks: int) -> None:
    run_ranks(steps, ranks, timeout=300)


def replicas(runtime: Runtime) -> None:
    x, y = networks.batch(7)
    for name, reads in networks_of(4).items():
        reference = oracle(lambda r=reads: cascade(r), Objective(0.4), x, y)  # type: ignore[misc]
        for extractor in ("root", "sharded"):
            stage = Stage(cascade(reads), runtime, extractor=extractor)
            engine = ParallelEngine(stage, Objective(0.4), microbatches=2, seed=5)
            check(f"{name}: {extractor}", stage, engine, reference, x, y)


def test_on_replicas() -> None:
    run_ranks(replicas, 4, replicas=2)


def streams(runtime: Runtime) -> None:
    """The weights after a stream are those of one whose features go everywhere."""
    for (name, reads), extractor, m in product(networks_of(4).items(), ("root", "sharded"), (1, 3)):
        found = [after_a_stream(runtime, reads, extractor, m, everywhere=flag) for flag in (False, True)]
        for own, expected in zip(*found, strict=True):
            assert torch.allclose(own, expected, rtol=0, atol=1e-12), f"{name}: {extractor} M={m}"


def after_a_stream(
    runtime: Runtime, reads: Sequence[Sequence[int]], extractor: Any, microbatches: int, *, everywhere: bool
) -> list[Tensor]:
    stage = Stage(cascade(reads), runtime, extractor=extractor)
    if everywhere:
        stage.skeleton.reads = lambda x: None  # type: ignore[method-assign]
    engine = StreamingEngine(stage, Objective(0.4), microbatches=microbatches)
    optimizer = torch.optim.SGD(stage.parameters(), 0.1)
    for _ in engine.train([networks.batch(6)] * 5, lambda parts: optimizer.step()):
        pass
    return [parameter.detach() for parameter in stage.parameters()]


@pytest.mark.parametrize("ranks", [2, 4])
def test_streams(ranks: int) -> None:
    run_ranks(streams, ranks, timeout=300)


def look(module: nn.Module, given: tuple[Any, ...]) -> None:
    """As a log would."""
    given[0][1].mean()


def a_hook_on_one_rank(runtime: Runtime) -> None:
    """What one rank has found holds for all."""
    x, y = networks.batch(7)
    reads = networks_of(4)["the first all"]
    reference = oracle(lambda: cascade(reads), Objective(0.4), x, y)
    for extractor in ("root", "sharded"):
        network = cascade(reads)
        if runtime.rank == runtime.world_size - 1:
            network.refiners[-1].register_forward_pre_hook(look)
        engine = ParallelEngine(stage := Stage(network, runtime, extractor=extractor), Objective(0.4), seed=5)  # type: ignore[arg-type]
        check(extractor, stage, engine, reference, x, y)


def test_a_hook_on_one_rank() -> None:
    run_ranks(a_hook_on_one_rank, 2)


def without_a_gradient(runtime: Runtime, schedule: str) -> None:
    reads = networks_of(4)["the first all"]
    objective = Objective(0.4, extractor_update="final")
    stage = Stage(cascade(reads), runtime, extractor="root")
    engine = LocalEngine(stage, objective) if schedule == "local" else ParallelEngine(stage, objective)
    engine.step(*networks.batch(7))


@pytest.mark.parametrize(("schedule", "ranks"), [("local", 1), ("fused", 1), ("fused", 2)])
def test_an_extractor_that_would_not_learn_is_refused(schedule: str, ranks: int) -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(without_a_gradient, ranks, schedule)
    for rank in range(ranks):
        assert (
            "the extractor would get no gradient: its features enter the forward of [0], and with "
            "extractor_update=final none of their losses trains it"
        ) in caught.value.errors[rank]


def traffic(runtime: Runtime, reads: Sequence[Sequence[int]], extractor: Any, objective: Any = None) -> dict[str, Any]:
    """Bytes of one step, by kind."""
    stage = Stage(cascade(reads), runtime, extractor=extractor)
    engine = ParallelEngine(stage, objective or Objective(0.4), microbatches=1)
    engine.step(*networks.batch(8))
    return {kind: count.bytes for kind, count in engine.traffic.sent.items() if count.bytes}


@pytest.mark.parametrize("extractor", ["root", "sharded"])
def test_what_is_sent(extractor: Any) -> None:
    """In bytes, of 8 rows: a float feature is 8 x 5 x 8 = 320, the integers are 8 x 8 = 64."""
    network = networks_of(4)
    first, *others = run_ranks(traffic, 4, network["the first all"], extractor)
    if extractor == "root":
        assert set(first) == {"state"}, "nothing of the extractor leaves its rank"
        assert all(set(other) <= {"state"} for other in others)
        one, another, *_ = run_ranks(
            traffic, 4, network["the first one, the last another, all the integers"], extractor
        )
        assert one["feature broadcast"] == 320 + 64, "to the last rank, and to all"
        assert "feature gradient reduction" not in another, "the integers have none"
    else:
        assert first.get("feature gather", 0) == 0, "what it has, it need not send itself"
        assert all(other["feature gather"] == (2 * 320 + 64) / 4 for other in others)
        assert first["feature gradient scatter"] == 3 / 4 * 2 * 320
        assert all(other.get("feature gradient scatter", 0) == 0 for other in others)
