"""What the harness trains is made once, and handed out as copies."""

import argparse

import pytest
import torch
from harness import workloads

WORKLOADS = ["emulated", "digits", "wide_mlp"]


def workload(name: str) -> workloads.Workload:
    parser = argparse.ArgumentParser()
    workloads.add_arguments(parser)
    return workloads.make(
        parser.parse_args(["--workload", name, "--refiners", "2", "--batch", "4", "--width", "8"]), num_ranks=1
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_weights_are_drawn_once_for_all_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recomputing` has those of the cascade."""
    draws = []
    for kind in ("uniform_", "normal_"):
        draw = getattr(torch.Tensor, kind)
        monkeypatch.setattr(torch.Tensor, kind, lambda *given, _draw=draw, **more: draws.append(1) or _draw(*given))
    networks = workload(name).networks
    once = {}
    for network, build in networks.items():
        build()
        once[network] = len(draws)
        build()
        build()
        assert len(draws) == once[network], network
    assert once["cascade"] > 0
    assert "recomputing" not in once or once["recomputing"] == once["plain"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_one_contender_learns_does_not_reach_another(name: str) -> None:
    for build in workload(name).networks.values():
        one, other = build(), build()
        before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(1)
        assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())
        assert all(torch.equal(tensor, before[key]) for key, tensor in build().state_dict().items())
