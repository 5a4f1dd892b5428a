"""How the ranks of one start find each other in a store that also holds what earlier starts have left there."""

import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store


def meet(store: Store, rank: int, world_size: int, timeout: float) -> Store:
    """A part of the store that only these ranks use. All of them call it; raises RuntimeError after `timeout` seconds.

    torchrun keeps its store when it restarts ranks, and not all of them are told: each host counts its own restarts. So
    every rank asks with a unique number, and waits for the answer to it; rank 0 answers until all ranks have one.
    """
    store = PrefixStore("sidpar", store)
    if rank > 0:
        mine = uuid4().hex
        store.set(f"ask/{rank}", mine)
        try:
            store.wait([f"answer/{mine}"], timedelta(seconds=timeout))
        except RuntimeError as error:
            raise RuntimeError(f"rank {rank} waited for rank 0 to start for {timeout:g} s and gave up") from error
        own = PrefixStore(store.get(f"answer/{mine}").decode(), store)
        own.set(f"met/{rank}", "yes")
        return own
    name, deadline = uuid4().hex, time.monotonic() + timeout
    own, missing = PrefixStore(name, store), set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if own.check([f"met/{other}"]):
                missing.remove(other)
            elif store.check([f"ask/{other}"]):  # perhaps what a rank has asked that is no more
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", name)
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank 0 waited for ranks {sorted(missing)} to start for {timeout:g} s and gave up")
        time.sleep(0.01)
    return own
