"""Checks a cascade before its first batch: whether it accepts such inputs, and whether its extractor may be sharded."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sidpar.cascade.batch_norm.module import Company, SynchronisedBatchNorm
from sidpar.cascade.batch_norm.stand_ins import Recorded
from sidpar.cascade.cascade import extract
from sidpar.cascade.inputs import Inputs
from sidpar.cascade.module_state import undone
from sidpar.cascade.snapshots import close
from sidpar.cascade.specs import CascadeSpecs, Spec, check_alike
from sidpar.distributed.device import seed_generator
from sidpar.errors import UsageError
from sidpar.seeding import undisturbed
from sidpar.stages.kept import Kept
from sidpar.stages.stage import Fits, Stage
from sidpar.stages.trial import ROWS, Found, try_out

_PROBE_ROWS = 32
_TOLERANCE = 1e-3


def check(
    stage: Stage, x: Tensor, *, training: bool = True, parts: Collection[int] = (), accompanied: bool = True
) -> CascadeSpecs:
    """The shapes of features and states for inputs like x [B, ...]. All ranks call it alike.

    For training, also finds out what each part of the cascade keeps from one forward to the next (`Stage.kept`).
    Results are cached per shape. Raises UsageError on every rank if the cascade does not accept such inputs, or if a
    sharded extractor would compute other features than one that sees the whole batch.

    Args:
        parts: the numbers of rows that modules will be given, to try modules that do not accept any number; the same on
            all ranks.
        accompanied: whether other ranks have more rows for the batch norms that share their statistics.
    """
    key = (Spec(tuple(x.shape[1:]), x.dtype), training, stage.training, accompanied)
    if key not in stage.checked:
        with stage.accompanied() if accompanied else nullcontext():
            stage.checked[key] = _check_once(stage, x, training=training)
    fits = stage.checked[key]
    few = set(parts) if fits.picky else {rows for rows in parts if rows < ROWS and training}
    for rows in sorted(few - fits.sizes):
        with _mode(stage, training=training), stage.accompanied() if accompanied else nullcontext():
            try_out(stage, x[:rows], training=training)
        fits.sizes.add(rows)
    return stage.skeleton.specs(x)


def _check_once(stage: Stage, x: Tensor, *, training: bool) -> Fits:
    inferred = stage.skeleton.can_infer(x)
    if not training and inferred:
        return Fits(picky=False)
    with _mode(stage, training=training):
        found, fits = _try_a_few(stage, x, training=training)
        for name, kept in found.kept.items():
            stage.kept[name] = stage.kept.get(name, Kept()) | kept
        if inferred:
            _check_specs(found.specs, stage.skeleton.specs(x))
        else:
            stage.skeleton.learn(x, found.specs, found.layers)
            if not fits.picky:
                _check_specs(try_out(stage, x[-ROWS:], training=training).specs, found.specs)
    if training and stage.placement.extractor == "sharded" and stage.runtime.cascade_size > 1:
        _check_shards(stage, x)
    return fits


def _mode(stage: Stage, *, training: bool) -> AbstractContextManager[None]:
    return nullcontext() if training else stage.inference_mode()


def _try_a_few(stage: Stage, x: Tensor, *, training: bool) -> tuple[Found, Fits]:
    """Try a few rows, or all rows if modules do not accept a few. What is tried next must not depend on the number of
    rows, since replicas may have fewer, and all ranks try together."""
    try:
        return try_out(stage, x[:ROWS], training=training), Fits(picky=False)
    except UsageError:
        return try_out(stage, x, training=training), Fits(picky=True)


def _check_specs(found: CascadeSpecs, inferred: CascadeSpecs) -> None:
    check_alike("the extractor", found.features, inferred.features)
    for i, (state, expected) in enumerate(zip(found.states[1:], inferred.states[1:], strict=True)):
        check_alike(f"refiner {i}", state, expected)


def _check_shards(stage: Stage, x: Tensor) -> None:
    assert stage.extractor is not None, "every rank holds a sharded extractor"
    ranks = stage.runtime.cascade_size
    shared = stage.shared_norms.get("extractor")
    company = None if shared is None else shared.company
    depends = depends_on_the_batch(stage.extractor, x.to(stage.runtime.device), ranks, company)
    if not any(stage.runtime.exchange("shards", depends)):  # replicas have other rows
        return
    suspects = [
        f"extractor.{name} ({type(module).__name__})"
        for name, module in stage.extractor.named_modules()
        if isinstance(module, _NormBase | _DropoutNd) and not (shared and isinstance(module, SynchronisedBatchNorm))
    ]
    synchronise = shared is None and any(isinstance(module, _BatchNorm) for module in stage.extractor.modules())
    raise UsageError(
        "in training, the extractor's features of a sample depend on the rest of the batch or on random "
        f"numbers{': ' + ', '.join(suspects) if suspects else ''}; a sharded extractor sees only "
        f"1/{ranks} of the batch on each rank, so it would compute other features: use "
        "extractor=replicated or root, or layers that treat each sample alone, such as GroupNorm"
        f"{'; or set parallel.sync_batchnorm=true, for the statistics of all ranks' if synchronise else ''}"
    )


def depends_on_the_batch(extractor: nn.Module, x: Tensor, parts: int, company: Company | None = None) -> bool:
    """Whether in training, the features of a sample depend on the other samples, on random numbers or on earlier
    passes, or whether x cannot be cut into so many parts.

    Found by trying, so it works for modules of any type: functional dropout, a user's own layers.

    Args:
        company: of the batch norms that share their statistics: in each part, they get those of all of x.
    """
    shared = Recorded()
    rows, forward = x[: max(parts, _PROBE_ROWS // parts * parts)], Inputs().of("the extractor", extractor)
    with (
        torch.no_grad(),
        undisturbed(x.device),
        undone(extractor, parameters=True) as before,
        nullcontext() if company is None else company.joined(shared),
    ):
        try:
            seed_generator(x.device, 0)
            together = extract(forward, rows)
            seed_generator(x.device, 1)
            separate = []
            for part in rows.roll(1, 0).tensor_split(parts):
                shared.replay()
                separate += [extract(forward, part)] if len(part) else []
        except (ValueError, RuntimeError):  # batch norm refuses a single value per channel; others, an odd number
            return True
        own = {name for name, _ in extractor.named_buffers()} - _shared_statistics(extractor, company)
        own |= {name for name, parameter in extractor.named_parameters() if parameter.requires_grad}
        written = not own.isdisjoint(before.changed())
    apart = [torch.cat(parts) for parts in zip(*separate, strict=True)]
    alike = (close(one, other.roll(1, 0), _TOLERANCE) for one, other in zip(apart, together, strict=True))
    return written or not all(alike)


def _shared_statistics(extractor: nn.Module, company: Company | None) -> set[str]:
    """The names of running statistics that are the same on all ranks."""
    norms = [] if company is None else [m for m in extractor.modules() if isinstance(m, SynchronisedBatchNorm)]
    shared = {id(buffer) for norm in norms for buffer in norm.buffers()}
    return {name for name, buffer in extractor.named_buffers() if id(buffer) in shared}
