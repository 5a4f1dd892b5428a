"""How replicas refuse, and what an error says of its rank."""

from typing import Any

import pytest

from sidpar import Objective, ParallelEngine, PipelineEngine, Runtime, Stage, make_cut
from tests import networks
from tests.harness import RankError, run_ranks


def nothing(runtime: Runtime) -> None:
    pass


def failing(runtime: Runtime) -> None:
    """The third of four ranks, the first of the second replica."""
    stage = Stage(networks.plain(2), runtime)
    engine = ParallelEngine(stage, Objective())
    engine.step(*networks.batch(4))
    if runtime.rank == 2:
        stage.refiners["0"].register_forward_hook(lambda *arguments: 1 / 0)
    engine.step(*networks.batch(4))


def pipeline(runtime: Runtime) -> None:
    placement = make_cut("1f1b", "root", 2, [1.0], [1.0] * 4)
    stage = Stage(networks.plain(4), runtime, placement=placement)
    PipelineEngine(stage, Objective(), schedule="1f1b", microbatches=4)


def too_few_refiners(runtime: Runtime) -> None:
    Stage(networks.plain(1), runtime)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("function", "replicas", "message"),
    [
        (nothing, 3, "replicas=3 needs 3 x K ranks, K for each copy of the cascade, but there are 4: start a"),
        (nothing, 0, "replicas must be at least 1, got 0"),
        (pipeline, 2, "replicas=2: a pipeline of backpropagation cannot be replicated; use 1, or BPEngine"),
        (too_few_refiners, 2, "1 refiners cannot be placed on 2 ranks"),
    ],
)
def test_messages_on_every_rank(function: Any, replicas: int, message: str) -> None:
    with pytest.raises(RankError) as failure:
        run_ranks(function, 4, replicas=replicas)
    assert set(failure.value.errors) == {0, 1, 2, 3}
    assert all("UsageError: " in text and message in text for text in failure.value.errors.values())


def test_one_process_is_one_replica() -> None:
    with pytest.raises(ValueError, match="replicas=2 needs 2 x K ranks, K for each copy of the cascade, but there are"):
        Runtime.start(device="cpu", replicas=2)


@pytest.mark.processes
def test_an_error_names_the_rank_in_the_world_and_in_its_cascade() -> None:
    with pytest.raises(RankError) as failure:
        run_ranks(failing, 4, replicas=2, step_timeout=5)
    expected = "rank 2 (rank 0 of replica 1) failed in step 1, in the action: forward of refiner 0"
    assert expected in failure.value.errors[2]
