"""The counter of saved activations against networks counted by hand, and the other figures."""

import os

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sidpar.distributed.device import peak_memory, reset_peak_memory
from sidpar.profiler.memory import bytes_of, measure_memory, resident
from sidpar.profiler.saved_activations import SavedTensors


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_a_network_counted_by_hand() -> None:
    """Linear saves its input (x, known) and its weight (known); ReLU its output [5, 16], which is also what the second
    Linear saves; log_softmax its output [5, 4]; nll_loss that output, the labels (known) and its total weight [1]."""
    network, x, y = mlp(), torch.randn(5, 8), torch.tensor([0, 1, 2, 3, 0])
    with SavedTensors([*network.parameters(), x, y]) as saved:
        loss = nn.functional.cross_entropy(network(x), y)
        assert saved.now == 4 * (5 * 16 + 5 * 4 + 1)
        loss.backward()
    assert saved.peak == 4 * (5 * 16 + 5 * 4 + 1)
    assert saved.now == 0, "the backward lets go of everything"


def test_what_is_not_known_counts() -> None:
    network, x = nn.Linear(8, 4), torch.randn(5, 8, requires_grad=True)
    with SavedTensors() as saved:
        output = network(x)
        assert saved.now == 4 * (5 * 8 + 4 * 8), "its input and its weight"
        del output
    assert saved.now == 0


def test_views_and_expanded_tensors_count_the_memory_behind_them() -> None:
    base = torch.randn(4, requires_grad=True)
    with SavedTensors() as saved:
        product = base.detach().expand(100, 4) * base
        assert saved.now == 4 * 4, "the expanded factor and base hold 4 numbers each, base twice the same"
        del product


def test_checkpointing_counts_what_is_computed_again() -> None:
    """Kept: the input [5, 8] of the whole. Computed again in the backward, on top: the ReLU's output [5, 16]."""
    network, x = mlp(), torch.randn(5, 8, requires_grad=True)
    with SavedTensors([*network.parameters()]) as saved:
        output = checkpoint(network, x, use_reentrant=True)
        assert saved.now == 4 * 5 * 8
        output.sum().backward()
    assert saved.peak == 4 * (5 * 8 + 5 * 16)


def test_memory_of_a_step() -> None:
    network, x = mlp(), torch.randn(5, 8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with SavedTensors([*network.parameters(), x]) as saved:
        network(x).sum().backward()
    optimizer.step()
    cpu, grads = torch.device("cpu"), bytes_of(p.grad for p in network.parameters() if p.grad is not None)
    memory = measure_memory(network, [optimizer], saved, cpu, gradients=grads, versions=5, communication_buffers=7)
    weights = 4 * (8 * 16 + 16 + 16 * 4 + 4)
    assert memory.parameters == memory.gradients == memory.optimizer_state == weights
    assert memory.saved_activations == 4 * 5 * 16
    assert (memory.versions, memory.communication_buffers) == (5, 7)
    assert memory.allocator_peak is memory.allocator_reserved is memory.driver is None, "there is no GPU"
    assert memory.resident > 10 << 20


def test_resident_set_grows() -> None:
    before = resident()
    ballast = torch.ones(64 << 18)
    assert resident() - before > bytes_of([ballast]) // 2


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not let the peak be reset")
def test_the_peak_of_the_resident_set_begins_anew() -> None:
    cpu = torch.device("cpu")
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    ballast = torch.ones(64 << 18)
    high = peak_memory(cpu)
    assert high - before > bytes_of([ballast]) // 2
    del ballast
    reset_peak_memory(cpu)
    assert high - peak_memory(cpu) > 32 << 20


@pytest.mark.parametrize("autocast", [False, True])
def test_nothing_is_left_after_a_backward(autocast: bool) -> None:
    network, x = mlp(), torch.randn(5, 8)
    with SavedTensors() as saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        network(x).float().sum().backward()
    assert saved.peak > 0
    assert saved.now == 0
