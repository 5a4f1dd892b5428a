"""The fit of latency and bandwidth, on real ranks."""

from dataclasses import asdict

import pytest

from sidpar import Runtime
from sidpar.calibration.links import measure_links
from sidpar.simulation.costs import Links
from tests.harness import run_ranks


def links(runtime: Runtime) -> dict[str, dict[str, float]]:
    return asdict(measure_links(runtime))


@pytest.mark.processes
@pytest.mark.parametrize(("replicas", "unused"), [(1, {"replica_all_reduce"}), (2, set())])
def test_links_are_measured_and_alike_on_all_ranks(replicas: int, unused: set[str]) -> None:
    """Those that a job of so many replicas has."""
    first, *others = run_ranks(links, 4, replicas=replicas)
    assert all(other == first for other in others)
    for name, link in first.items():
        assert (link["latency"] + link["seconds_per_byte"] > 0) == (name not in unused), name


def test_one_process_has_no_links() -> None:
    assert measure_links(Runtime.single("cpu")) == Links()
