"""A training loop of your own: your modules, your data and your optimizer; sidpar computes the gradients.

    python examples/own_loop.py
    torchrun --standalone --nproc_per_node=2 examples/own_loop.py

With `--streaming`, ranks do not wait for each other between batches, and the extractor learns one step late.
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sidpar


def spirals(count: int, seed: int) -> TensorDataset:
    """Points in the plane on three spiral arms [count, 2], and the arm that each point is on [count]."""
    draw = torch.Generator().manual_seed(seed)
    arm, along = torch.randint(0, 3, (count,), generator=draw), torch.rand(count, generator=draw)
    angle = 2.1 * arm + 4 * along + 0.1 * torch.randn(count, generator=draw)
    return TensorDataset(torch.stack([along * angle.cos(), along * angle.sin()], dim=1), arm)


class Refiner(nn.Module):
    """Features [B, 32] and the log-belief of the refiner before [B, 3] to new logits [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32 + 3, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, features: Tensor, log_belief: Tensor) -> Tensor:
        return self.layers(torch.cat([features, log_belief.exp()], dim=1))


with sidpar.Runtime.start() as runtime:  # one process, or one rank of those that torchrun has started
    torch.manual_seed(0)  # every rank builds the same cascade ...
    cascade = sidpar.Cascade(nn.Sequential(nn.Linear(2, 32), nn.ReLU()), [Refiner() for _ in range(4)], num_classes=3)
    stage = sidpar.Stage(cascade, runtime, extractor="sharded")  # ... and keeps its own refiners
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)  # every rank loads the same whole batches
    on_gpu = runtime.device.type == "cuda"
    loader = DataLoader(spirals(1024, seed=0), batch_size=128, shuffle=True, generator=order, pin_memory=on_gpu)
    objective = sidpar.Objective(alpha=0.5)  # weight of the label against the belief before
    if "--streaming" in sys.argv:
        engine: sidpar.ParallelEngine = sidpar.StreamingEngine(stage, objective, microbatches=4, staleness=1)
        for _ in range(20):
            for _result in engine.train(loader, lambda parts: optimizer.step()):
                pass  # `optimizer.step()` is called as soon as the gradients of some parts are complete
    else:
        engine = sidpar.ParallelEngine(stage, objective, schedule="fused", microbatches=4)
        for _ in range(20):
            for x, y in loader:
                engine.step(x, y)  # sets the gradients of `stage.parameters()`
                optimizer.step()
    result = engine.evaluate(*spirals(512, seed=1).tensors)
    print(f"rank {runtime.rank}: refiners {list(result.refiners)}, accuracy {result.accuracy.tolist()}")
