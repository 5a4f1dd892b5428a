"""The whole cascade's state arrives on rank 0, whoever holds it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sidpar import Objective, ParallelEngine, Runtime, Stage
from sidpar.runs.weights import gather_weights, save_weights
from tests import networks
from tests.harness import run_ranks


def gathered(runtime: Runtime, extractor: str) -> dict[str, Tensor]:
    """After a step, so that batch norm's buffers have moved."""
    stage = Stage(networks.noisy(5), runtime, extractor=extractor)  # type: ignore[arg-type]
    ParallelEngine(stage, Objective(), seed=1).step(*networks.batch(8))
    return gather_weights(stage)


@pytest.mark.processes
def test_parameters_and_buffers_of_all_ranks() -> None:
    (alone,) = run_ranks(gathered, 1, "replicated")
    assert alone.keys() == networks.noisy(5).state_dict().keys()
    assert alone["refiners.4.layers.1.num_batches_tracked"] == 1
    for extractor in ("replicated", "root"):
        first, *others = run_ranks(gathered, 3, extractor)
        assert others == [{}, {}], "only rank 0 has them"
        assert first.keys() == alone.keys()
        for name, tensor in alone.items():
            assert torch.allclose(first[name].double(), tensor.double()), name


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory."""
    cascade = networks.flat(2)
    cascade.extractor[3].bias = cascade.extractor[1].bias  # type: ignore[index, union-attr]
    save_weights(Stage(cascade, Runtime.single("cpu")), tmp_path / "weights.safetensors")
    written = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(written["extractor.1.bias"], written["extractor.3.bias"])
    networks.flat(2).load_state_dict(written)
