"""Random numbers that depend on what they are for, never on how many ranks there are."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any keys, say (seed, "refiner", 3): the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Run with torch's CPU generator seeded by `keys`, and put its state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*keys))
        yield


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put all global generators back afterwards: torch's on the CPU and on this device, Python's, NumPy's."""
    own, others = random.getstate(), numpy.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, device_type="cuda"):
        try:
            yield
        finally:
            random.setstate(own)
            numpy.random.set_state(others)


def seed_host(seed: int) -> None:
    """Seed the global generators of the host: torch's for the CPU, Python's, NumPy's."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed % 2**32)


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator of its own, seeded by `keys`."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def mask_seed(seed: int, part: str, step: int, microbatch: int) -> int:
    """The seed of one module's random masks; `part` is its global name. A teacher pass and a student pass share it."""
    return derive_seed("mask", seed, part, step, microbatch)
