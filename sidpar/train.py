"""`python -m sidpar.train`: from a configuration to a run folder. Start it with torchrun for more than one rank."""

from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.errors import record

from sidpar.config import command_line
from sidpar.config.command_line import errors_in_one_line
from sidpar.config.console import printing, without_reader
from sidpar.config.schema import Config
from sidpar.distributed.environment import read_environment
from sidpar.distributed.runtime import Runtime
from sidpar.methods import complete
from sidpar.runs.launches import was_stopped
from sidpar.runs.logs import closing_logs, log_to_console
from sidpar.training.run import train
from sidpar.training.stopping import REQUEUE_STATUS


@record
def main(arguments: Sequence[str] | None = None) -> None:
    """One rank of a run. A mistake in the settings ends every rank with exit code 2, a run that cannot go on with 1,
    both with one line that says why; a run that has stopped on request ends with `REQUEUE_STATUS`."""
    config = parse(arguments)
    if was_stopped(config, read_environment().launch):
        raise SystemExit(REQUEUE_STATUS)  # before the ranks wait for each other: some may have left already
    with without_reader(), errors_in_one_line("sidpar.train"), closing_logs():
        runtime = Runtime.start(
            backend=config.parallel.backend,
            device=config.parallel.device,
            init_timeout=config.parallel.init_timeout,
            step_timeout=config.parallel.step_timeout,
            replicas=config.parallel.replicas,
            tf32=config.compute.tf32,
            cudnn_benchmark=config.compute.cudnn_benchmark,
        )
        log_to_console(runtime.rank)
        with runtime:
            finished = train(config, runtime)
    if not finished:
        raise SystemExit(REQUEUE_STATUS)


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: `--config FILE`, then `--group.key VALUE` over it.

    A mistake ends the process with exit code 2 and one line that names the key. `--print_config` prints the resolved
    configuration, as the run folder would keep it, and ends the process.
    """
    parser = command_line.config_parser(
        "sidpar.train",
        "torchrun --nproc_per_node=K -m sidpar.train [--config FILE] [SETTINGS]",
        "Train a cascade by Synergistic Information Distillation, one process per rank.",
    )
    parser.add_argument("--print_config", action="store_true", help="Print the resolved settings and exit.")
    with printing("sidpar.train"):
        config, others = command_line.parse(parser, arguments, complete)
        if others["print_config"]:
            print(command_line.to_yaml(config), end="")
            parser.exit()
    return config


if __name__ == "__main__":
    main()
