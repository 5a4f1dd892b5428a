"""Everything that one GPU can prove in eight minutes, the most telling first.

    python profiling/gpu/run.py --out profiling/results/gpu

Needs no network: what a machine lacks, `pack.py` gathers beforehand. Each part is a command with a time limit of its
own. What it prints goes to DIR/CARD/PART.log as it comes, what it measures to DIR/CARD, and after each part its verdict
to DIR/CARD/summary.json: a run that is cut off leaves all but its last part. Trainings take the minutes that are left.

Without a GPU, or with --small, the same parts run at the least size that they take; those that need a GPU are skipped,
and say so.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from pack import DATA, WHEELS

ROOT = Path(__file__).parent.parent.parent
SITE = Path(__file__).parent / "pack" / "site"
KEPT_LINES = 6
LAST_WORDS = 10.0
"""Seconds for a part that is ended to say how far it came."""


@dataclass(frozen=True)
class Part:
    """A command, its name, the seconds that it may take, and whether it makes sense without a GPU."""

    name: str
    limit: float
    command: list[str]
    needs_gpu: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a part."""

    name: str
    status: str
    seconds: float
    command: str
    last_lines: list[str]


def parts(out: Path, data: Path, *, small: bool) -> list[Part]:
    """In the order in which they run. Names of results are those of the parts."""
    test = ["-m", "pytest", "-p", "no:cacheprovider", "-n", "4", "--dist", "worksteal", "--tb", "short"]
    found = [
        Part("first_use", 30, ["profiling/gpu/first_use.py", "--out", str(out / "first_use.json")], needs_gpu=True),
        Part("tests", 150, [*test, "tests/gpu", "-rs"]),
    ]
    found += [Part(name, 75, command) for name, command in _speedups(out, small=small).items()]
    found.append(Part("demo", 60, _train(out, "demo", "digits", 2, ["--optim.epochs", "1"] if small else [])))
    first_use, resuming = "tests/engines/test_first_use.py", "tests/training/test_resume.py"
    found += [
        Part("engine_overhead", 60, _overhead(out, small=small)),
        Part("tests_of_resuming", 60, [*test, resuming, "--device", "cuda"], needs_gpu=True),
        Part("tests_of_first_use", 60, [*test, first_use, "--device", "cuda"], needs_gpu=True),
    ]
    found += [Part(name, 60, command) for name, command in _stacked(out, small=small).items()]
    return found + _trainings(out, data, small=small)


def _overhead(out: Path, *, small: bool) -> list[str]:
    sizes = ["--batch", "4", "--steps", "1", "--warmup", "0"] if small else ["--batch", "512"]
    return ["profiling/engine_overhead.py", "--out", str(out / "engine_overhead.json"), *sizes]


def _speedups(out: Path, *, small: bool) -> dict[str, list[str]]:
    """SID against backpropagation in one process: microbatches, checkpointing and accumulation beside it."""
    cases = {
        "simple_cnn": ["--workload", "simple_cnn", "--batch", "512"],
        "simple_cnn_bf16": ["--workload", "simple_cnn", "--batch", "512", "--autocast", "bf16"],
        "wide_mlp": ["--workload", "wide_mlp", "--batch", "1024", "--width", "4096"],
    }
    least = ["--batch", "8", "--refiners", "2", "--width", "16", "--steps", "1", "--warmup", "0", "--stream", "2"]
    sizes = least if small else ["--refiners", "8", "--steps", "7", "--traced", "1"]
    common = ["--microbatches", "1", "4", "--extractors", "replicated", *sizes]
    return {
        name: ["profiling/speedup.py", *case, *common, "--out", str(out / name)]
        for name, case in cases.items()
        if not small or name == "simple_cnn"
    }


def _stacked(out: Path, *, small: bool) -> dict[str, list[str]]:
    """Refiners one by one and all at once; eager, and compiled."""
    least = ["--networks", "simple_cnn", "--refiners", "2", "--batches", "8", "--steps", "1", "--warmup", "0"]
    sizes = least if small else ["--refiners", "8", "32", "--batches", "64", "1024"]
    command = ["profiling/stacked.py", *sizes, "--out"]
    found = {"stacked": [*command, str(out / "stacked.json")]}
    return found if small else found | {"stacked_compiled": [*command, str(out / "stacked_compiled.json"), "--compile"]}


def _trainings(out: Path, data: Path, *, small: bool) -> list[Part]:
    """On what is at hand: SID, backpropagation through the same graph, and through a plain network."""
    folders = {"cifar10": "cifar-10-batches-py", "fashion_mnist": "FashionMNIST"}
    present = [name for name, folder in folders.items() if not small and (data / folder).is_dir()]
    methods: dict[str, list[str]] = {
        "sid": [],
        "bp": ["--method", "bp"],
        "plain": ["--method", "bp", "--model.name", "plain_cnn"],
    }
    found = []
    for dataset, seed, (method, flags) in product(present, (0, 1, 2), methods.items()):
        name, given = f"{dataset}_{method}_seed{seed}", ["--data.root", str(data), "--run.seed", str(seed)]
        found.append(Part(name, 120, _train(out, name, dataset, 1, [*flags, *given])))
    return found


def _train(out: Path, name: str, config: str, ranks: int, flags: list[str]) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "sidpar.train"]
    return [*start, "--config", f"configs/{config}.yaml", "--run.dir", str(out / "runs" / name), *flags]


def carry_out(part: Part, seconds: float, log: Path) -> Verdict:
    """Run it for so long at most."""
    given, began = " ".join(part.command), time.monotonic()
    if part.needs_gpu and not torch.cuda.is_available():
        return Verdict(part.name, "skipped: needs a GPU", 0.0, given, [])
    if seconds <= 0:
        return Verdict(part.name, "skipped: no time is left", 0.0, given, [])
    paths = [str(ROOT), *([str(SITE)] if SITE.is_dir() else []), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *part.command],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            status = "passed" if code == 0 else f"failed with status {code}"
        except subprocess.TimeoutExpired:
            _end(process)
            status = f"ended after {seconds:.0f} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Verdict(part.name, status, time.monotonic() - began, given, lines[-KEPT_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, upon which pytest says what has failed so far; then for good."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(LAST_WORDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def install() -> None:
    """What the pack holds and the machine lacks, in a folder of the pack."""
    wheels = [wheel for wheel in WHEELS.glob("*.whl") if find_spec(wheel.name.split("-")[0]) is None]
    if wheels and not SITE.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(SITE)]
        subprocess.run([*pip, *map(str, wheels)], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, one folder a card")
    parser.add_argument("--minutes", type=float, default=8.0, help="after these no part begins, and the last one ends")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of datasets")
    parser.add_argument("--only", nargs="+", help="parts whose names contain one of these words")
    parser.add_argument("--small", action="store_true", help="the least sizes, as without a GPU")
    given = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * given.minutes
    gpu = torch.cuda.is_available()
    card = re.sub(r"\W+", "_", torch.cuda.get_device_name()) if gpu else "cpu"
    out: Path = (given.out / card).absolute()
    out.mkdir(parents=True, exist_ok=True)
    install()
    verdicts: list[Verdict] = []
    for part in parts(out, given.data.absolute(), small=given.small or not gpu):
        if given.only and not any(word in part.name for word in given.only):
            continue
        print(f"{part.name} ...", flush=True)
        left = deadline - time.monotonic()
        verdicts.append(carry_out(part, min(part.limit, left), out / f"{part.name}.log"))
        content = {"card": card, "torch": torch.__version__, "parts": [asdict(verdict) for verdict in verdicts]}
        (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"  {verdicts[-1].status}, {verdicts[-1].seconds:.0f} s", flush=True)
        for line in verdicts[-1].last_lines:
            print(f"  | {line}", flush=True)
    if any(verdict.status.startswith(("failed", "ended")) for verdict in verdicts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
