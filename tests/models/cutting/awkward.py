"""Networks of a user's own, each with something that a cut must take or refuse."""

import torch
from torch import Tensor, nn

CLASSES = 3


class Layers(nn.Module):
    """Four layers on vectors [B, 6], which forwards below call as they like."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.d(self.c(self.b(self.a(x).tanh()).tanh()).tanh())
        return logits


class Skip(Layers):
    """What a gives goes past b and c."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x).tanh()
        logits: Tensor = self.d(first + self.c(self.b(first).tanh()))
        return logits


class KeepsSize(Layers):
    """The batch size is found at first and used at last."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        return super().forward(x).view(rows, CLASSES)


class Twice(Layers):
    """b has two calls."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.d(self.c(self.b(self.b(self.a(x).tanh()))))
        return logits


class LooksAtData(Layers):
    """A branch by numbers, in the forward of the network."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class BranchInside(nn.Module):
    """The same in a block of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(6, 6), LooksAtData(), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.block(self.first(x)))
        return logits


class ByType(Layers):
    """A branch that torch.fx goes the wrong way."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if isinstance(x, Tensor) else super().forward(x) * 2


class ByMode(Layers):
    """Dropout as a function, another scale in evaluation; a constant, a buffer, a parameter that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8,), 0.5))
        self.register_buffer("shift", torch.full((8,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.a(x), 0.5, self.training)
        x = self.b(x) * self.scale + self.shift
        if not self.training:
            x = x * 3
        logits: Tensor = self.d(self.c(x + torch.ones(8, dtype=torch.float64)))
        return logits


class TwoInputs(Layers):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class Mask(Layers):
    """A second input that is left alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if mask is None else x * mask)


class Auxiliary(Layers):
    """Returns more than logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits * 2


class Shared(Layers):
    """A parameter on both sides of the layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.a.bias.sum()
