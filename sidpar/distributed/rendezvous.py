"""How the ranks of one start find each other in a store that also holds what earlier starts have left there."""

import time
from datetime import timedelta
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store


def meet(store: Store, rank: int, world_size: int, timeout: float) -> Store:
    """A part of the store that is these ranks' own. All of them call it; raises RuntimeError after `timeout` seconds.

    torchrun keeps its store when it starts ranks again, and does not tell all of them that it does: each host counts
    its own restarts. So every rank asks with a number that nobody else has, and goes by the answer to that; rank 0
    answers until all have gone.
    """
    store = PrefixStore("sidpar", store)
    if rank > 0:
        mine = uuid4().hex
        store.set(f"ask/{rank}", mine)
        try:
            store.wait([f"answer/{mine}"], timedelta(seconds=timeout))
        except RuntimeError as error:
            raise RuntimeError(f"rank {rank} waited for rank 0 for {timeout:g} s, in vain") from error
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
            raise RuntimeError(f"rank 0 waited for ranks {sorted(missing)} for {timeout:g} s, in vain")
        time.sleep(0.01)
    return own
