"""What profiling/stacked.py times must compute the same, and it notices if it does not."""

import pytest
import stacked
import torch

from sidpar.cascade.cascade import TensorTuple

CPU = torch.device("cpu")


@pytest.mark.parametrize("network", list(stacked.FEATURES))
def test_the_check_is_made_in_float64(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    loop = stacked.loop

    def watched(refiners: list[torch.nn.Module], batch: stacked.Batch) -> None:
        seen.update(tensor.dtype for refiner in refiners for tensor in (*refiner.parameters(), *batch.features))
        loop(refiners, batch)

    monkeypatch.setattr(stacked, "loop", watched)
    stacked.check(network, 3, 16, CPU, compile=False)
    assert seen == {torch.float64}


def test_a_small_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is wrong by a millionth, far less than fp32 could tell."""
    chain = stacked.chain

    def wrong(refiners: list[torch.nn.Module], batch: stacked.Batch) -> list[TensorTuple]:
        first, *others = chain(refiners, batch)
        return [first, *((state[0] * (1 + 1e-6),) for state in others)]

    monkeypatch.setattr(stacked, "chain", wrong)
    with pytest.raises(AssertionError, match="the gradients differ"):
        stacked.check("simple_cnn", 3, 16, CPU, compile=False)
