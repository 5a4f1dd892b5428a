"""The network of a run, once all ranks have built the same."""

from collections.abc import Callable

from sidpar.cascade.cascade import Cascade
from sidpar.cascade.specs import fingerprint
from sidpar.distributed.runtime import Runtime
from sidpar.errors import UsageError


def build_alike(build: Callable[[], Cascade], runtime: Runtime) -> Cascade:
    """What `build` makes, once all ranks have made the same; all ranks call it. No message but through the store.

    Where it fails on some ranks, these raise their own error, and the others a UsageError that quotes the first one.
    """
    failure, mine = None, {}
    try:
        cascade = build()
        mine["weights"] = fingerprint(cascade)
    except Exception as error:
        failure = error
        mine["problem"] = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
    everyone = runtime.exchange("network", mine)
    if failure is not None and not isinstance(failure, UsageError):
        raise failure
    problems = {rank: found["problem"] for rank, found in enumerate(everyone) if "problem" in found}
    if problems:
        rank, problem = next(iter(problems.items()))
        everywhere = list(problems.values()) == [problem] * len(everyone)
        raise UsageError(problem if everywhere else f"rank {rank} cannot build the network: {problem}") from failure
    weights = [found["weights"] for found in everyone]
    if len(set(weights)) > 1:
        raise UsageError(
            "the ranks have built different networks: "
            + ", ".join(f"rank {rank} has initial weights {digest}" for rank, digest in enumerate(weights))
            + ". A builder must draw its random numbers from torch, which is seeded for it, or from its argument "
            "seed, and must not depend on the rank"
        )
    return cascade
