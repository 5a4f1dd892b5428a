"""What is found out about a cascade before its first batch: whether it takes such inputs, and where it may lie."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sidpar.cascade.cascade import extract
from sidpar.cascade.inputs import Inputs
from sidpar.cascade.module_state import undone
from sidpar.cascade.snapshots import close
from sidpar.cascade.specs import CascadeSpecs, Spec, check_alike
from sidpar.distributed.device import seed_generator
from sidpar.errors import UsageError
from sidpar.seeding import undisturbed
from sidpar.stages.stage import Stage
from sidpar.stages.trial import try_out

_PROBE_ROWS = 32
_TOLERANCE = 1e-3


def check(stage: Stage, x: Tensor, *, training: bool = True) -> CascadeSpecs:
    """What crosses the seams for inputs like x [B, ...]. All ranks call it alike.

    For training, it is also found out what each part of the cascade keeps from one forward to the next (`Stage.kept`).
    Remembered per shape. Raises UsageError on every rank if the cascade cannot take such inputs, or if a sharded
    extractor would compute something else than one that sees the whole batch.
    """
    key = (Spec(tuple(x.shape[1:]), x.dtype), training)
    if key in stage.checked:
        return stage.skeleton.specs(x)
    inferred = stage.skeleton.can_infer(x)
    if training:
        found = try_out(stage, x)
        stage.kept |= found.kept
    elif not inferred:
        with stage.inference_mode():
            found = try_out(stage, x)
    if not inferred:
        stage.skeleton.learn(x, found.specs, found.layers)
    elif training:
        _check_specs(found.specs, stage.skeleton.specs(x))
    if training and stage.placement.extractor == "sharded" and stage.runtime.cascade_size > 1:
        _check_shards(stage, x)
    stage.checked.add(key)
    return stage.skeleton.specs(x)


def _check_specs(found: CascadeSpecs, inferred: CascadeSpecs) -> None:
    check_alike("the extractor", found.features, inferred.features)
    for i, (state, expected) in enumerate(zip(found.states[1:], inferred.states[1:], strict=True)):
        check_alike(f"refiner {i}", state, expected)


def _check_shards(stage: Stage, x: Tensor) -> None:
    assert stage.extractor is not None, "every rank holds a sharded extractor"
    if not depends_on_the_batch(stage.extractor, x.to(stage.runtime.device)):
        return
    suspects = [
        f"extractor.{name} ({type(module).__name__})"
        for name, module in stage.extractor.named_modules()
        if isinstance(module, _NormBase | _DropoutNd)
    ]
    raise UsageError(
        "in training, the extractor's features of a sample depend on the rest of the batch or on random "
        f"numbers{': ' + ', '.join(suspects) if suspects else ''}; a sharded extractor sees only "
        f"1/{stage.runtime.cascade_size} of the batch on each rank and would train on other ones: use "
        "extractor=replicated or root, or layers that treat each sample alone, such as GroupNorm"
    )


def depends_on_the_batch(extractor: nn.Module, x: Tensor) -> bool:
    """Whether a training pass over x treats a sample differently according to its company, to random numbers or to what
    came before.

    Found by trying, so it also sees what no list of module types would: functional dropout, a user's own layers.
    """
    rows, forward = x[:_PROBE_ROWS], Inputs().of("the extractor", extractor)
    with torch.no_grad(), undisturbed(x.device), undone(extractor, parameters=True) as before:
        try:
            seed_generator(x.device, 0)
            together = extract(forward, rows)
            seed_generator(x.device, 1)
            halves = [extract(forward, half) for half in rows.tensor_split(2) if len(half)]
        except ValueError:  # batch norm refuses a single value per channel
            return True
        written = not {name for name, _ in extractor.named_buffers()}.isdisjoint(before.changed())
    apart = [torch.cat(parts) for parts in zip(*halves, strict=True)]
    return written or not all(close(one, other, _TOLERANCE) for one, other in zip(apart, together, strict=True))
