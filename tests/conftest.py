"""Every test starts from the same random state, and the header says which torch is tested."""

import multiprocessing.process
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.harness import ROOT, compute_on

settings.register_profile("no deadline", deadline=None)  # the machine may be busy; time is not what is tested
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "where the ranks that tests start compute; with cuda, all of them share one GPU and talk over gloo"
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help=help_)


def pytest_configure(config: pytest.Config) -> None:
    compute_on(config.getoption("device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


_running: list[pytest.Item] = []


def _noticed(start: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the test that starts a process fail, unless it says so by its marker."""

    def noticed(*args: Any, **kwargs: Any) -> Any:
        if _running and _running[0].get_closest_marker("processes") is None:
            pytest.fail("this test starts a process and is not marked with pytest.mark.processes")
        return start(*args, **kwargs)

    return noticed


subprocess.Popen.__init__ = _noticed(subprocess.Popen.__init__)  # type: ignore[method-assign]
multiprocessing.process.BaseProcess.start = _noticed(  # type: ignore[method-assign]
    multiprocessing.process.BaseProcess.start
)


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which start most processes
def pytest_runtest_setup(item: pytest.Item) -> None:
    _running[:] = [item]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker is left with one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def tiny_imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny-ImageNet as published, with 25 of its classes, from the pack beside the checkout: not to be written to."""
    shared = ROOT.parent / "shared" / "data"
    if not shared.exists():
        pytest.skip(f"no datasets at {shared}")
    root = tmp_path_factory.mktemp("tiny_imagenet")
    subprocess.run([sys.executable, shared / "realdata.py", "tiny_imagenet", root], check=True, capture_output=True)
    return root / "tiny-imagenet-200"


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}"
