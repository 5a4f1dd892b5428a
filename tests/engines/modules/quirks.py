"""Small networks with what people write into theirs, any set of it, and plain loops that train them."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidpar import Cascade
from sidpar.cascade.cascade import initial_state
from sidpar.seeding import seeded

CLASSES, INPUTS, WIDTH, ROWS = 3, 5, 6, 8
RATE, ALPHA = 0.1, 0.5

KEPT = (
    "replaced buffer",
    "written buffer",
    "unseen write",
    "counter",
    "queue",
    "maximum",
    "last mean",
    "first call",
    "momentum",
    "max norm",
)
"""What depends on the batches before."""
ANYWHERE = (
    *KEPT,
    "tied",
    "checkpoint",
    "reentrant",
    "looks",
    "masked rows",
    "numpy",
    "scratch",
    "even rows",
    "iterator",
    "cache",
    "hook",
    "weight norm",
    "batch norm",
)
EXTRACTOR = (*ANYWHERE, "writes input", "complex", "two features", "integers")
REFINER = (*ANYWHERE, "writes belief", "writes features", "hidden", "writes hidden", "complex hidden", "sparse hidden")


class Quirks(nn.Module):
    """[b, inputs] to [b, WIDTH], with quirks on the way."""

    def __init__(self, inputs: int, quirks: Collection[str]) -> None:
        super().__init__()
        self.quirks = frozenset(quirks)
        self.enter, self.block = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.register_buffer("hidden_scale", torch.ones(WIDTH))
        self.register_buffer("queue", torch.zeros(4, WIDTH))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("work", torch.zeros(16, WIDTH))
        self.last_mean: Tensor | None = None
        self.started = False
        self.count, self.numbers = 0, itertools.cycle([1.0, 0.5, 2.0])
        if "max norm" in quirks:
            self.table = nn.Embedding(inputs, WIDTH, max_norm=1.0)
        self.slow = nn.Linear(inputs, WIDTH).requires_grad_(False)
        if "weight norm" in quirks:
            self.block = torch.nn.utils.weight_norm(self.block)
        if "batch norm" in quirks:
            self.norm = nn.BatchNorm1d(WIDTH)
        if "hook" in quirks:
            mask = torch.ones(WIDTH, 1, dtype=torch.float64)
            mask[::2] = 0
            self.enter.weight.register_hook(lambda gradient: gradient * mask)

    def body(self, x: Tensor) -> Tensor:
        """What extractors and refiners have in common."""
        has = self.quirks.__contains__
        h: Tensor = self.enter(x)
        if has("momentum"):
            with torch.no_grad():
                self.slow.weight.mul_(0.9).add_(0.1 * self.enter.weight)
            h = h + 0.1 * self.slow(x)
        if has("tied") or has("weight norm"):
            h = self.block(self.block(h).tanh())
        for name in ("checkpoint", "reentrant"):
            if has(name):
                for _ in range(3):
                    h = checkpoint(nn.Sequential(self.block, nn.Tanh()), h, use_reentrant=name == "reentrant")
        if has("looks") and float(h.detach().sum()) > 0:
            h = 2 * h
        if has("masked rows"):
            rows = (h.detach().sum(1) > 0).nonzero().squeeze(1)
            h = h.index_add(0, rows, h[rows])
        if has("numpy"):
            h = h * torch.from_numpy(h.detach().numpy().clip(-1, 1))
        if has("batch norm"):
            h = self.norm(h)
        if has("max norm"):
            h = h + self.table(x.argmax(1))
        if has("even rows"):
            h = h + 0.1 * h.view(-1, 2, WIDTH).flip(1).reshape(-1, WIDTH)
        if has("last mean") and self.last_mean is not None:
            h = h + self.last_mean
        if has("first call"):
            h = h * (1.0 if self.started else 3.0)
        if has("scratch"):
            gate = self.work[: len(h)]
            gate.data.copy_(h.detach().sigmoid())
            h = h * gate
        if has("iterator"):
            h = h * next(self.numbers)
        if self.training:
            self._keep(h.detach())
        return self._read(h)

    def _keep(self, h: Tensor) -> None:
        has = self.quirks.__contains__
        if has("replaced buffer"):
            self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
        if has("written buffer"):
            self.scale.mul_(0.9).add_(0.1 * h.abs().mean(0))
        if has("unseen write"):
            self.hidden_scale.data.mul_(0.9)
        if has("counter"):
            self.count += 1
        if has("queue"):
            self.queue[int(self.pointer)] = h.mean(0)
            self.pointer = (self.pointer + 1) % len(self.queue)
        if has("last mean"):
            self.last_mean = h.mean(0)
        if has("first call"):
            self.started = True
        if has("maximum"):
            self.largest = torch.maximum(self.largest, h.abs().max())
        if has("cache"):
            self.last = h

    def _read(self, h: Tensor) -> Tensor:
        has = self.quirks.__contains__
        if has("replaced buffer"):
            h = h - self.mean
        if has("written buffer"):
            h = h * self.scale.clone()
        if has("unseen write"):
            h = h * self.hidden_scale
        if has("counter"):
            h = h * (1 + 0.1 * self.count)
        if has("queue"):
            h = h + self.queue.mean(0)
        if has("maximum"):
            h = h / (1 + self.largest)
        return h.tanh()


class Extractor(Quirks):
    """[b, INPUTS] to features."""

    def __init__(self, quirks: Collection[str]) -> None:
        super().__init__(INPUTS, quirks)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if "writes input" in self.quirks:
            x.mul_(0.5)
        h = self.body(x)
        features = [torch.fft.rfft(h, dim=1) if "complex" in self.quirks else h]
        if "two features" in self.quirks:
            features.append(h[:, :2])
        if "integers" in self.quirks:
            features.append((x > 0).long())
        if "ragged" in self.quirks:
            features.append(h.detach()[:, : 1 + int((h > 0).sum()) % WIDTH])
        return tuple(features) if len(features) > 1 else features[0]


class Refiner(Quirks):
    """Features and a state to a state."""

    def __init__(self, features: Sequence[str], quirks: Collection[str]) -> None:
        sizes = 2 * (WIDTH // 2 + 1) if "complex" in features else WIDTH
        self.few = "ragged" in features
        sizes += 2 * ("two features" in features) + INPUTS * ("integers" in features)
        super().__init__(sizes + CLASSES, quirks)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Any, state: Any) -> Any:
        has = self.quirks.__contains__
        features, state = (tensors if isinstance(tensors, tuple) else (tensors,) for tensors in (features, state))
        if has("writes features"):
            features[0].mul_(0.5)
        features = features[:-1] if self.few else features
        belief = state[0].exp_() if has("writes belief") else state[0].exp()
        flat = [torch.view_as_real(f).flatten(1) if f.is_complex() else f.to(belief.dtype) for f in features]
        h = self.body(torch.cat([*flat, belief], 1))
        if not any(name.endswith("hidden") for name in self.quirks):
            return self.head(h)
        hidden = state[1] if len(state) > 1 else torch.zeros_like(h)
        hidden = hidden.to_dense() if hidden.layout != torch.strided else hidden
        hidden = hidden.real if hidden.is_complex() else hidden
        if has("writes hidden"):
            hidden += h
        else:
            hidden = hidden + h
        logits = self.head(hidden)
        if has("complex hidden"):
            return logits, torch.complex(hidden, hidden)
        return logits, hidden.to_sparse() if has("sparse hidden") else hidden


def build(extractor: Collection[str], refiner: Collection[str], num_refiners: int = 4, seed: int = 0) -> Cascade:
    """A cascade in float64, always the same."""
    with seeded(seed):
        features = sorted(extractor)
        refiners = [Refiner(features, refiner).double() for _ in range(num_refiners)]
        return Cascade(Extractor(extractor).double(), refiners, CLASSES)


def batches(number: int, rows: int = ROWS) -> list[tuple[Tensor, Tensor]]:
    with seeded(1):
        return [
            (torch.randn(rows, INPUTS, dtype=torch.float64), torch.randint(0, CLASSES, (rows,))) for _ in range(number)
        ]


def plain_loop(
    cascade: Cascade,
    data: Sequence[tuple[Tensor, Tensor]],
    staleness: int = 0,
    *,
    local: bool = True,
    training: bool = True,
) -> dict[str, Tensor]:
    """Local learning, or else backpropagation, by SGD in plain PyTorch, every module with inputs of its own: parameters
    and buffers after it.

    With staleness S, the extractor's gradient of a batch, taken at the weights that made its features, is applied S
    batches later; those that are left are applied at the end.
    """
    cascade.train(training)
    extractor = [p for p in cascade.extractor.parameters() if p.requires_grad]
    late: list[list[Tensor]] = []
    for x, y in data:
        cascade.zero_grad()
        loss(cascade, x, y, local=local).backward()  # type: ignore[no-untyped-call]
        late.append([torch.zeros_like(p) if p.grad is None else p.grad for p in extractor])
        with torch.no_grad():
            for refiner in cascade.refiners:
                for p in refiner.parameters():
                    if p.grad is not None:
                        p -= RATE * p.grad
        if len(late) > staleness:
            apply(extractor, late.pop(0))
    for gradients in late:
        apply(extractor, gradients)
    return {name: tensor.detach() for name, tensor in [*cascade.named_parameters(), *cascade.named_buffers()]}


def loss(cascade: Cascade, x: Tensor, y: Tensor, *, local: bool) -> Tensor:
    """The sum of SID's local losses, up to a constant, or backpropagation's loss, that of the last belief."""
    features = cascade.extractor(x.clone())
    features = features if isinstance(features, tuple) else (features,)
    state = initial_state(tuple(f.detach() for f in features), CLASSES)
    total = torch.zeros((), dtype=torch.float64)
    for refiner in cascade.refiners:
        teacher = state[0].exp()
        given, own = tuple(f.clone() for f in features), tuple(s.clone() for s in state)
        out = refiner(given if len(given) > 1 else given[0], own if len(own) > 1 else own[0])
        logits, *hidden = out if isinstance(out, tuple) else (out,)
        log_belief = logits.log_softmax(1)
        state = (log_belief, *hidden)
        if local:
            aim = ALPHA * nn.functional.one_hot(y, CLASSES) + (1 - ALPHA) * teacher
            total = total - (aim * log_belief).sum(1).mean()
            state = tuple(s.detach() for s in state)
    return total if local else nn.functional.nll_loss(state[0], y)


@torch.no_grad()
def apply(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter -= RATE * gradient
