"""The whole cascade's state arrives on rank 0, whoever holds it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sidpar import Objective, Runtime, SIDEngine, Stage
from sidpar.weights import gather_weights, save_weights
from tests import networks
from tests.harness import run_ranks


def gathered(runtime: Runtime, extractor: str) -> dict[str, Tensor]:
    """After a step, so that batch norm's buffers have moved."""
    stage = Stage(networks.noisy(5), runtime, extractor=extractor)  # type: ignore[arg-type]
    SIDEngine(stage, Objective(), seed=1).step(*networks.batch(8))
    return gather_weights(stage)


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
    cascade = networks.plain(2)
    cascade.refiners[1].layers[2].weight = cascade.refiners[0].layers[2].weight
    save_weights(Stage(cascade, Runtime.single("cpu")), tmp_path / "weights.safetensors")
    written = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(written["refiners.0.layers.2.weight"], written["refiners.1.layers.2.weight"])
    networks.plain(2).load_state_dict(written)
