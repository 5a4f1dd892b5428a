"""The configured network: one that ships with sidpar, or the user's own; the same on every rank, or none."""

from collections.abc import Callable

from sidpar import models
from sidpar.builder import build_own
from sidpar.cascade import Cascade
from sidpar.config import Config
from sidpar.errors import UsageError
from sidpar.runtime import Runtime
from sidpar.specs import fingerprint


def build_network(config: Config, image_shape: tuple[int, int, int], num_classes: int) -> Cascade:
    """The network with its initial weights, for images [channels, H, W]. Raises UsageError as `build_own` does."""
    model, seed = config.model, config.run.seed
    if model.builder is not None:
        return build_own(model, image_shape, num_classes, seed)
    if model.name in ("wide_mlp", "plain_mlp"):
        assert model.width is not None
        assert model.depth is not None
        build = models.wide_mlp if model.name == "wide_mlp" else models.plain_mlp
        return build(image_shape, num_classes, model.num_refiners, width=model.width, depth=model.depth, seed=seed)
    build_cnn = models.simple_cnn if model.name == "simple_cnn" else models.plain_cnn
    return build_cnn(image_shape, num_classes, model.num_refiners, seed=seed)


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
            + ". A builder's random numbers must come from torch, which is seeded for it, or from its seed, and "
            "nothing in it may depend on the rank"
        )
    return cascade
