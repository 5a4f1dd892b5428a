"""Every test starts from the same random state, and the header says which torch is tested."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.harness import ROOT

settings.register_profile("no deadline", deadline=None)  # the machine may be busy; time is not what is tested
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
