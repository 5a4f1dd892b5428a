"""Every test starts from the same random state, and the header says which torch is tested."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # the machine may be busy; time is not what is tested
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, CUDA {torch.cuda.is_available()}"
