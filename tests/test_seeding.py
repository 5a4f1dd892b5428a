"""Seeds depend on their keys alone, and devices' generators are put back."""

import torch

from sidpar.distributed.device import preserved_generator, seed_generator
from sidpar.seeding import derive_seed, generator, mask_seed, seeded


def test_seeds_are_stable() -> None:
    """Written down, because a change would silently change every run."""
    assert derive_seed(0, "refiners.3") == 7_812_068_424_284_960_794
    assert len({derive_seed(a, b) for a in range(20) for b in ("x", "y", "1")}) == 60
    assert derive_seed(1, "2") != derive_seed("1", 2)
    assert mask_seed(0, "extractor", 1, 2) != mask_seed(0, "extractor", 2, 1)


def test_seeded_puts_the_state_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded("a"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, torch.rand(3, generator=generator("a")))


def test_device_generator() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with preserved_generator(cpu):
        seed_generator(cpu, 5)
        first = torch.rand(3)
        seed_generator(cpu, 5)
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected)
