"""What every placement and schedule of SID must keep, besides equal gradients: locality, and little memory."""

import weakref
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sidpar import Objective, ParallelEngine, Runtime, Stage
from tests import networks
from tests.harness import run_ranks
from tests.oracle import gradients

pytestmark = pytest.mark.processes


def perturbed_later_refiner(runtime: Runtime) -> None:
    """On ranks: other weights in the last refiner change no gradient before it, not by a bit."""
    x, y = networks.batch(6)
    for extractor, schedule in product(("replicated", "root", "sharded"), ("fused", "two_phase")):
        found = []
        for perturb in (False, True):
            cascade = networks.plain(4)
            if perturb:
                for parameter in cascade.refiners[3].parameters():
                    parameter.data.mul_(-2)
            stage = Stage(cascade, runtime, extractor=extractor)  # type: ignore[arg-type]
            ParallelEngine(stage, Objective(), schedule=schedule, microbatches=2).step(x, y)  # type: ignore[arg-type]
            found.append(gradients(stage))
        for name, gradient in found[0].items():
            if name.startswith("refiners.3"):
                assert not torch.equal(gradient, found[1][name]), "the perturbation has landed"
            elif name.startswith("refiners"):
                assert torch.equal(gradient, found[1][name]), name


def test_no_gradient_depends_on_a_later_refiner() -> None:
    run_ranks(perturbed_later_refiner, 2)


class SavedTensors:
    """Counts bytes of the tensors that autograd keeps for backward, now and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __enter__(self) -> "SavedTensors":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> Any:
        class Box:
            pass

        box: Any = Box()
        box.tensor = tensor
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(box, self._release, size)
        return box

    def _release(self, size: int) -> None:
        self.now -= size


def peak_of(stage: Stage, schedule: Any, microbatches: int, batch_size: int) -> int:
    """The most bytes saved at any time of a step. The extractor is frozen, so they are the refiners' alone."""
    engine = ParallelEngine(stage, Objective(extractor_update="frozen"), schedule=schedule, microbatches=microbatches)
    x, y = networks.batch(batch_size)
    engine.step(x, y)
    with SavedTensors() as saved:
        engine.step(x, y)
    assert saved.now == 0, "nothing outlives the step"
    return saved.peak


def saved_activations(runtime: Runtime) -> None:
    own = len(Stage(networks.plain(6), runtime).own_refiners)
    one = peak_of(Stage(networks.plain(6), runtime), "fused", 1, 4)
    assert one > 0
    assert peak_of(Stage(networks.plain(6), runtime), "fused", 4, 16) == one, "one microbatch of this rank's refiners"
    assert peak_of(Stage(networks.plain(6), runtime), "fused", 1, 16) > 3 * one
    # Refiner 0 receives the same shapes as all others, so each refiner saves the same.
    refiners = 1 if runtime.rank == runtime.world_size - 1 else own
    of_one = peak_of(Stage(networks.plain(6), runtime), "two_phase", 4, 16)
    assert of_one * refiners == one, "two_phase, and fused where no other rank waits: one microbatch of one refiner"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_only_one_microbatch_is_alive(ranks: int) -> None:
    """What is saved for backwards, by saved-tensor hooks."""
    run_ranks(saved_activations, ranks)
