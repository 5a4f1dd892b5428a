"""The modules of a network that share their statistics, and how they are made of plain batch norms."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sidpar.cascade.batch_norm.statistics import Sharing, batch_norm
from sidpar.errors import UsageError


class Company:
    """With whom some batch norms share their statistics at this moment: with nobody, but within `joined`."""

    def __init__(self) -> None:
        self.sharing: Sharing | None = None

    @contextmanager
    def joined(self, sharing: Sharing) -> Iterator[None]:
        """Within, also in backwards that compute a forward again, statistics are those of everyone's rows."""
        before, self.sharing = self.sharing, sharing
        try:
            yield
        finally:
            self.sharing = before


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm that was made to share its statistics. Alone, it does what it did before.

    It runs its own forward, so that modules which add to batch norm (an activation, say) stay what they are: only the
    call of `torch.nn.functional.batch_norm` with the statistics of the batch is another one.
    """

    _company: "weakref.ref[Company]"  # not followed where modules are copied, or what they keep is undone

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        company = self._company()
        if company is None or company.sharing is None:
            return super().forward(input)
        with _Shared(company.sharing) as shared:
            output = super().forward(input)
        if not shared.was_called:
            raise UsageError(
                f"{type(self).__name__} does not call torch.nn.functional.batch_norm, so its statistics cannot be "
                "those of all ranks: use nn.BatchNorm1d, 2d or 3d, or set parallel.sync_batchnorm=false"
            )
        return output


class _Shared(TorchFunctionMode):
    """Within, `torch.nn.functional.batch_norm` takes everyone's statistics where it would take those of the batch."""

    def __init__(self, sharing: Sharing) -> None:
        super().__init__()
        self._sharing = sharing
        self.was_called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        self.was_called = True
        if not kwargs["training"]:  # torch gives all but the first three by name
            return func(*args, **kwargs)
        settings = {name: value for name, value in kwargs.items() if name != "training"}
        return batch_norm(self._sharing, *args, **settings)


def synchronise(module: nn.Module, company: Company) -> list[str]:
    """Let every batch norm within `module` share its statistics with `company`, in place; their names.

    They stay the same modules, with the same parameters, buffers and names, so weights and checkpoints fit as before.
    Raises UsageError for torch's own SyncBatchNorm.
    """
    names = []
    for name, norm in module.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        if isinstance(norm, nn.SyncBatchNorm):
            raise UsageError(
                f"{name or 'the module'} is torch's SyncBatchNorm, which has a group of ranks of its own: use "
                "nn.BatchNorm1d, 2d or 3d, which parallel.sync_batchnorm=true synchronises"
            )
        if not isinstance(norm, SynchronisedBatchNorm):
            norm.__class__ = _synchronised(type(norm))
        assert isinstance(norm, SynchronisedBatchNorm)
        norm._company = weakref.ref(company)
        names.append(name)
    return names


_KINDS: dict[type[nn.Module], type[SynchronisedBatchNorm]] = {}


def _synchronised(kind: type[nn.Module]) -> type[SynchronisedBatchNorm]:
    """The kind of batch norm that shares its statistics and is this one otherwise, one for each."""
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Synchronised{kind.__name__}", (SynchronisedBatchNorm, kind), {})
    return _KINDS[kind]
