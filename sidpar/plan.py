"""`python -m sidpar.plan`: what a configuration will run on so many ranks, how long a step takes, and what is faster.

Needs neither GPUs nor torchrun. The pieces of the network are timed on this machine's device, or read from a file that
a plan has written on another one. What messages cost is assumed, or measured where torchrun starts the ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from jsonargparse import ArgumentParser

from sidpar.calibration.links import measure_links
from sidpar.config.command_line import config_parser, errors_in_one_line, parse
from sidpar.config.console import printing
from sidpar.config.groups.checks import at_least
from sidpar.config.schema import Config
from sidpar.config.units import BYTES, BYTES_PER_SECOND, SECONDS, human, read_quantity
from sidpar.distributed.device import describe
from sidpar.distributed.runtime import Runtime
from sidpar.engines.backpropagation.order import torch_order
from sidpar.errors import UsageError
from sidpar.methods import complete, method_of
from sidpar.methods.base import job_of
from sidpar.methods.costs import measure_pieces
from sidpar.models import forms_beliefs
from sidpar.models.network import build_network
from sidpar.planner.report import plan_text
from sidpar.planner.search import Freedom, make_plan, record_of
from sidpar.plots.plan import draw_plan
from sidpar.runs.atomic_files import write_whole
from sidpar.schedules.batching import Share
from sidpar.simulation.costs import Costs, Links, from_plain, ring_links, to_plain
from sidpar.training.same_dataset import build_loader, load_dataset
from sidpar.training.same_network import build_alike


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a plan, on rank 0. A mistake ends the process with exit code 2 and one line that names it."""
    with printing("sidpar.plan"), errors_in_one_line("sidpar.plan"):
        config, arguments_by_name = parse(_parser(), arguments, complete)
        given = PlanArguments.read(arguments_by_name)
        with _start(config, given) as runtime:
            _plan(config, given, runtime)


@dataclass(frozen=True)
class PlanArguments:
    """The arguments of the command line besides the configuration."""

    ranks: int | None
    memory: float | None
    """Bytes per rank."""
    latency: float
    """Seconds."""
    bandwidth: float
    """Bytes per second."""
    assumed: str
    """Latency and bandwidth as the user gave them."""
    measured: bool
    costs: Path | None
    out: Path | None

    @classmethod
    def read(cls, given: dict[str, Any]) -> Self:
        """From text to numbers. Raises UsageError."""
        if given["measured"] and (given["latency"] or given["bandwidth"]):
            raise UsageError(
                "--measured measures latency and bandwidth: remove --latency and --bandwidth, or --measured"
            )
        if given["ranks"] is not None:
            at_least("--ranks", given["ranks"], 1)
        memory, latency, bandwidth = given["device_memory"], given["latency"] or "10us", given["bandwidth"] or "100GB/s"
        return cls(
            ranks=given["ranks"],
            memory=None if memory is None else read_quantity("--device-memory", memory, BYTES),
            latency=read_quantity("--latency", latency, SECONDS, zero=True),
            bandwidth=read_quantity("--bandwidth", bandwidth, BYTES_PER_SECOND),
            assumed=f"assumed, {latency} and {bandwidth} on every link",
            measured=given["measured"],
            costs=None if given["costs"] is None else Path(given["costs"]),
            out=None if given["out"] is None else Path(given["out"]),
        )


def _parser() -> ArgumentParser:
    parser = config_parser(
        "sidpar.plan",
        "python -m sidpar.plan [--config FILE] [--ranks K] [SETTINGS]",
        "Predict how long a step of a configuration takes on many ranks, and what would be faster.",
    )
    add = parser.add_argument
    add("--ranks", type=int, help="Ranks to plan for; by default those of this job, or 8 without torchrun.")
    add("--device-memory", type=str, help="Memory of each rank, such as 80GB; by default that of this GPU.")
    add("--latency", type=str, help="Latency of a message, such as 5us; by default 10us.")
    add("--bandwidth", type=str, help="Bandwidth of a link, such as 300GB/s; by default 100GB/s.")
    add(
        "--measured",
        action="store_true",
        help="Measure latency and bandwidth between the ranks that torchrun has started.",
    )
    add(
        "--costs",
        type=str,
        help="Read the costs of the network from the costs.json of another plan, instead of measuring them.",
    )
    add("--out", type=str, help="Write plan.txt, plan.json, costs.json and plan.png into this folder.")
    return parser


def _start(config: Config, given: PlanArguments) -> Runtime:
    """Where costs are given and no message is measured, the configured device need not be here."""
    parallel, unused = config.parallel, given.costs is not None and not given.measured
    return Runtime.start(
        device="auto" if unused else parallel.device,
        backend="auto" if unused else parallel.backend,
        init_timeout=parallel.init_timeout,
        step_timeout=parallel.step_timeout,
        replicas=parallel.replicas if given.measured else 1,
        tf32=config.compute.tf32,
        cudnn_benchmark=config.compute.cudnn_benchmark,
    )


def _plan(config: Config, given: PlanArguments, runtime: Runtime) -> None:
    ranks = _ranks(config, given, runtime)
    if given.out is not None:
        _make_folder(given.out)
    costs, where = _costs(config, given, runtime)
    if given.measured:
        links, messages = measure_links(runtime), f"measured on these {ranks} ranks, {runtime.backend}"
    else:
        links = ring_links(given.latency, given.bandwidth, ranks, config.parallel.replicas)
        messages = given.assumed
    if runtime.rank > 0:
        return
    memory = given.memory or (None if given.costs else runtime.usable_memory)
    conditions = {
        "job": f"{config.model.network}, {config.model.refiners} refiners, "
        f"batch {config.data.batch_size}, on {ranks} ranks"
        + (f", {config.parallel.replicas} replicas" if config.parallel.replicas > 1 else ""),
        "costs": where,
        "messages": messages,
        "memory": "no limit" if memory is None else f"{human(memory)} on each rank",
    }
    job = job_of(config, replace(costs, links=links), ranks, memory)
    plan = make_plan(job, Freedom() if forms_beliefs(config.model) else Freedom(schedules=()), torch_order)
    present = method_of(config).expected(config, job)
    text = plan_text([f"{name:<9} {value}" for name, value in conditions.items()], job, present, plan)
    print(text)
    if given.out is not None:
        write_whole(given.out / "plan.txt", text + "\n")
        _write(given.out / "costs.json", _record(config, costs, where))
        _write(
            given.out / "plan.json",
            {
                "conditions": conditions,
                "links": asdict(links),
                "configured": record_of(present),
                "chosen": None if plan.chosen is None else record_of(plan.chosen),
                "options": [record_of(option) | {"fits": option.fits(job)} for option in plan.options],
                "left_out": plan.left_out,
            },
        )
        draw_plan(job, plan, conditions, given.out / "plan.png")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {path} cannot be created: {error}") from error


def _write(path: Path, records: dict[str, Any]) -> None:
    write_whole(path, json.dumps(records, indent=1) + "\n")


def _ranks(config: Config, given: PlanArguments, runtime: Runtime) -> int:
    """How many to plan for: checked before anything is measured."""
    if given.measured and runtime.world_size == 1:
        raise UsageError(
            "--measured sends messages between ranks, but there is one process: start it by torchrun "
            "--nproc_per_node=K -m sidpar.plan, or give --latency and --bandwidth"
        )
    if given.measured and given.ranks not in (None, runtime.world_size):
        raise UsageError(
            f"--measured measures messages between the {runtime.world_size} ranks that were started, not between "
            f"--ranks {given.ranks}: remove --ranks, or start {given.ranks} ranks"
        )
    ranks, replicas = given.ranks or (runtime.world_size if runtime.world_size > 1 else 8), config.parallel.replicas
    if ranks % replicas:
        raise UsageError(f"parallel.replicas={replicas} does not divide {ranks} ranks: set --ranks to a multiple of it")
    method_of(config).check_ranks(config, ranks)
    return ranks


def _costs(config: Config, given: PlanArguments, runtime: Runtime) -> tuple[Costs, str]:
    """What the pieces cost, and where that was measured."""
    if given.costs is not None:
        return _read_costs(config, given.costs)
    if runtime.device.type == "cpu" and runtime.world_size == 1:
        torch.set_num_threads(1)  # as ranks that share a machine have
    dataset = load_dataset(config, runtime)
    build = partial(build_network, config, dataset.image_shape, dataset.num_classes)
    build_alike(build, runtime)  # refuses here what could not be trained
    sample = build_loader(config, dataset, runtime.device).sample
    costs = measure_pieces(config, build, sample, runtime, Links())
    return costs, f"measured on {describe(runtime.device)}, by {runtime.world_size} at once"


def _record(config: Config, costs: Costs, where: str) -> dict[str, Any]:
    """A file of costs: of which network they are, and where they were measured."""
    model = {name: value for name, value in asdict(config.model).items() if value is not None}
    network = {"model": model, "compute": asdict(config.compute), "data": config.data.name}
    return {"network": network, "where": where, "costs": to_plain(replace(costs, links=Links()))}


def _read_costs(config: Config, path: Path) -> tuple[Costs, str]:
    try:
        found = json.loads(path.read_text())
        network, where, costs = dict(found["network"]), found["where"], from_plain(found["costs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--costs {path} cannot be read ({error}): give a costs.json that a plan has written"
        ) from error
    share, known = len(Share(config.data.batch_size, config.parallel.replicas, 0).taken), costs.refiners[0].forward.rows
    if share > known[-1]:
        raise UsageError(
            f"--costs {path} holds costs of batches of {known[0]} to {known[-1]} rows, but a replica's share of "
            f"data.batch_size={config.data.batch_size} has {share}: measure again, or set a smaller batch"
        )
    own = json.loads(json.dumps(_record(config, costs, where)["network"]))
    differences = [f"{kind} {network.get(kind)}" for kind in own if network.get(kind) != own[kind]]
    if differences:
        raise UsageError(
            f"--costs {path} was measured with {', '.join(differences)}, not with this configuration's: measure again"
        )
    return costs, f"from {path}, {where}"


if __name__ == "__main__":
    main()
