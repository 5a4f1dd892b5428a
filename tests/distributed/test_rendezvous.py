"""Ranks of one start find each other among what earlier ones have left in the same store."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from sidpar.distributed.rendezvous import meet


def meet_all(store: Store, world_size: int) -> list[Store]:
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(lambda rank: meet(store, rank, world_size, 10.0), range(world_size)))


def test_every_start_has_a_part_of_its_own() -> None:
    store = dist.HashStore()
    first, *others = meet_all(store, 3)
    first.set("key", "of the first start")
    assert all(other.get("key") == b"of the first start" for other in others)
    again = meet_all(store, 3)
    assert not any(part.check(["key"]) for part in again)


def test_what_a_dead_rank_has_asked_misleads_nobody() -> None:
    """It asked, was answered, and was killed; or it asked, and rank 0 was killed first."""
    store = dist.HashStore()
    PrefixStore("sidpar", store).set("ask/1", "a number of the past")
    first, second = meet_all(store, 2)
    first.set("key", "now")
    assert second.get("key") == b"now"


@pytest.mark.parametrize(
    ("rank", "message"), [(0, "rank 0 waited for ranks .1, 2. to start for 0.3 s"), (1, "rank 1 waited for")]
)
def test_who_waits_in_vain_says_so(rank: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        meet(dist.HashStore(), rank, 3, 0.3)
