"""What a rank holds, and what it refuses to hold."""

from typing import Any

import pytest
import torch
from torch import nn

from sidpar import Objective, Runtime, SIDEngine, Stage
from sidpar.cascade import Cascade
from tests import networks
from tests.harness import RankError, run_ranks


def shares(runtime: Runtime, extractor: Any, counts: list[int] | None) -> list[str]:
    return list(Stage(networks.plain(5), runtime, extractor=extractor, counts=counts).state_dict())


def test_parameters_keep_their_global_names() -> None:
    everything = set(networks.plain(5).state_dict())
    found = run_ranks(shares, 2, "root", [1, 4])
    assert set(found[0]) | set(found[1]) == everything
    assert not set(found[0]) & set(found[1]), "each parameter on one rank"
    assert {name.split(".")[1] for name in found[1]} == {"1", "2", "3", "4"}
    for name in run_ranks(shares, 2, "replicated", None)[1]:
        assert name in everything


def test_one_rank_holds_everything() -> None:
    stage = Stage(networks.plain(3), Runtime.single("cpu"))
    assert list(stage.state_dict()) == list(networks.plain(3).state_dict())
    assert list(stage.parts()) == ["extractor", "refiners.0", "refiners.1", "refiners.2"]


def with_layer(runtime: Runtime, layer: nn.Module) -> None:
    cascade = networks.plain(2)
    Stage(Cascade(nn.Sequential(cascade.extractor, layer), cascade.refiners, 3), runtime, extractor="sharded")


def placed(runtime: Runtime, num_refiners: int, counts: list[int] | None) -> None:
    Stage(networks.plain(num_refiners), runtime, counts=counts)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (with_layer, (nn.BatchNorm1d(4),), "extractor.1 is a BatchNorm1d, and a sharded extractor sees only 1/2"),
        (with_layer, (nn.Dropout(0.1),), "extractor.1 is a Dropout, and in a sharded extractor its mask would depend"),
        (placed, (1, None), "1 refiners cannot be placed on 2 ranks, each of which needs at least one"),
        (placed, (3, [3]), "placement [3] has 1 ranks and 3 refiners, but 3 refiners go on 2 ranks"),
    ],
)
def test_messages_are_the_same_on_every_rank(function: Any, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RankError) as error:
        run_ranks(function, 2, *args)
    assert all(message in error.value.errors[rank] for rank in (0, 1)), error.value


def test_dropout_that_drops_nothing_is_welcome() -> None:
    run_ranks(with_layer, 2, nn.Dropout(0.0))


def test_teacher_passes_do_not_count_in_running_statistics() -> None:
    found = []
    for schedule in ("fused", "two_phase"):
        stage = Stage(networks.noisy(2), Runtime.single("cpu"), extractor="root")
        SIDEngine(stage, Objective(), schedule=schedule).step(*networks.batch(8))  # type: ignore[arg-type]
        found.append(dict(stage.named_buffers()))
    assert found[0]
    assert all(torch.allclose(value.double(), found[1][name].double()) for name, value in found[0].items())
    assert all(m.track_running_stats for m in stage.modules() if isinstance(m, nn.BatchNorm1d))
