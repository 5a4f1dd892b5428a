"""Accuracy as a function of staleness, with and without remedies, on real data and real ranks.

    torchrun --standalone --nproc_per_node=4 profiling/staleness.py --config configs/digits.yaml --out FILE

trains the configuration once for each staleness, remedy and seed, and adds a row to FILE for each, unless it is there
already. `profiling/staleness_report.py` makes the table and the picture. Staleness 0 is `fused`. What follows
`--` are flags of `sidpar.train`.

A remedy changes how the extractor is trained, and nothing else:

- `none`.
- `warmup`: the learning rate (of all parts) rises over the first fifth of training.
- `slow`: the extractor's learning rate divided by 1 + S / 2.
- `momentum`: no momentum in the extractor's optimizer (SGD's momentum 0, Adam's first beta 0).
- `prediction`: `parallel.weight_prediction`. Features are made with the weights that the extractor is expected to have
  when their gradient is applied: its last movement, continued for S steps (after SpecTrain, Chen et al. 2018).
- `compensation`: the gradient g at old weights w' becomes g + g * g * (w - w') / rms(g), with the weights w that it is
  applied to (after DC-ASGD, Zheng et al. 2017).

`--diagnose N` observes Proposition 5 N times in each run with staleness; each observation drains the stream, so such
runs are rows of their own.
"""

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from harness.conditions import conditions

from sidpar import ParallelEngine, Runtime, StreamingEngine
from sidpar.engines.base import Update
from sidpar.methods import method_of
from sidpar.models.network import build_network
from sidpar.schedules.actions import Do
from sidpar.train import parse
from sidpar.training.meter import Meter
from sidpar.training.optim import Optimizers
from sidpar.training.same_dataset import build_loader, load_dataset

REMEDIES = ("none", "warmup", "slow", "momentum", "prediction", "compensation")


class Compensating(StreamingEngine):
    """Late gradients, corrected for how far the weights have moved meanwhile."""

    def _update(self, update: Update, step: int, do: Do) -> None:
        def compensated(parts: Collection[str]) -> None:
            if do is Do.UPDATE_EXTRACTOR and self._extractors is not None:
                for now, old in zip(self._extractors.present, self._extractors.of(step).weights or (), strict=True):
                    assert now.grad is not None
                    scale = now.grad.square().mean().sqrt() + 1e-12
                    now.grad.add_(now.grad.square() * (now.detach() - old.detach()) / scale)
            update(parts)

        super()._update(compensated, step, do)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2, 4, 8])
    parser.add_argument("--remedies", nargs="+", choices=REMEDIES, default=["none"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--diagnose", type=int, default=0, help="observations of Proposition 5 in each run")
    parser.add_argument("flags", nargs="*", help="of sidpar.train, after --")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    with Runtime.start() as runtime:
        present = runtime.from_root("rows", read(arguments.out)["rows"])
        done = {identity(row) for row in present}
        for seed in arguments.seeds:
            for staleness in arguments.staleness:
                for remedy in arguments.remedies if staleness else ["none"]:
                    row = {"staleness": staleness, "remedy": remedy, "seed": seed, "diagnose": arguments.diagnose}
                    if identity(row) in done or (arguments.diagnose and not staleness):
                        continue
                    row |= train(arguments, runtime, row)
                    done.add(identity(row))
                    if runtime.rank == 0:
                        record(arguments, runtime, row)


def train(arguments: argparse.Namespace, runtime: Runtime, row: dict[str, Any]) -> dict[str, Any]:
    """One run from its first batch to its test accuracy."""
    staleness, remedy = row["staleness"], row["remedy"]
    flags = ["--config", arguments.config, "--parallel.schedule", "streaming", "--parallel.staleness", str(staleness)]
    flags += ["--run.seed", str(row["seed"]), *arguments.flags]
    config = parse(flags)
    if remedy == "warmup":
        config = parse([*flags, "--optim.warmup_epochs", str(config.optim.epochs / 5)])
    if remedy == "slow":
        config = parse([*flags, "--optim.extractor_lr", str(config.optim.lr / (1 + staleness / 2))])
    dataset = load_dataset(config, runtime)
    loader = build_loader(config, dataset, runtime.device)
    cascade = build_network(config, dataset.image_shape, dataset.num_classes)
    stage = method_of(config).place(config, cascade, loader.sample, runtime)
    engine: ParallelEngine = method_of(config).engine(config, stage, loader.sample)  # type: ignore[assignment]
    steps = config.optim.epochs * loader.steps_per_epoch
    if staleness:
        kind = Compensating if remedy == "compensation" else StreamingEngine
        engine = kind(
            stage,
            config.objective,
            microbatches=config.parallel.microbatches or 1,
            staleness=staleness,
            weight_prediction=remedy == "prediction",
            diagnose_every=steps // (row["diagnose"] + 1) if row["diagnose"] else 0,
            seed=config.run.seed,
        )
    optimizers = Optimizers(stage.parts(), config.optim, loader.steps_per_epoch)
    if remedy == "momentum" and stage.extractor is not None:
        for group in optimizers.all[0].param_groups:
            group |= {"betas": (0.0, group["betas"][1])} if "betas" in group else {"momentum": 0.0, "nesterov": False}

    def update(parts: Collection[str]) -> None:
        if config.optim.clip is not None:
            engine.clip(config.optim.clip, parts)
        optimizers.update(parts)

    found = []
    for epoch in range(config.optim.epochs):
        for result in engine.train(loader.train_batches(epoch), update):
            if result.diagnosis is not None:
                found.append({"step": engine.steps, **result.diagnosis})
    meter = Meter(engine)
    for x, y in loader.test_batches():
        meter.add(engine.evaluate(x, y))
    test = meter.read()
    return {"test_accuracy": test["accuracy"][-1], "test_loss": test["loss"][-1], "steps": steps, "diagnoses": found}


def identity(row: dict[str, Any]) -> tuple[object, ...]:
    """What makes a run another run."""
    return tuple(row[name] for name in ("staleness", "remedy", "seed", "diagnose"))


def read(path: Path) -> dict[str, Any]:
    """What the file holds so far."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    return found


def record(arguments: argparse.Namespace, runtime: Runtime, row: dict[str, Any]) -> None:
    """Add a row to the file."""
    report = read(arguments.out) | {
        "environment": conditions(runtime.device) | {"backend": runtime.backend, "ranks": runtime.world_size},
        "config": arguments.config,
        "flags": arguments.flags,
    }
    report["rows"].append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print({name: value for name, value in row.items() if name != "diagnoses"}, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
