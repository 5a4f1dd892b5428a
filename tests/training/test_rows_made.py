"""Which rows each rank decodes in a run; the weights are bit for bit those of a run in which all ranks decode all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sidpar.data.decoding import read_images
from sidpar.data.loader import Loader
from sidpar.distributed.runtime import Runtime
from sidpar.train import parse
from tests.data.image_files import digits_folder
from tests.harness import make_run, run_ranks

pytestmark = pytest.mark.processes

FLAGS = ["--data.name", "image_folder", "--data.image_size", "16", "--data.batch_size", "20", "--data.workers", "0"]
FLAGS += ["--model.name", "wide_mlp", "--model.width", "16", "--model.num_refiners", "8", "--optim.warmup_epochs", "0"]
FLAGS += ["--optim.epochs", "2", "--run.tensorboard", "false", "--parallel.device", "cpu"]
ALL = 2 * (48 + 16)
"""Two epochs of 48 training images, in batches of 20, 20 and 8, and of 16 test images."""

CASES = {
    "sharded": ("", [32, 32, 32, 32]),
    "sharded, 2 microbatches": ("--parallel.microbatches 2", [36, 36, 28, 28]),
    "sharded, two phases": ("--parallel.schedule two_phase", [32, 32, 32, 32]),
    "streaming": ("--parallel.schedule streaming --parallel.microbatches 4", [48, 32, 24, 24]),
    "root": ("--parallel.extractor root", [ALL, 0, 0, 0]),
    "replicated": ("--parallel.extractor replicated", [ALL, ALL, ALL, ALL]),
    "2 replicas, sharded": ("--parallel.replicas 2", [32, 32, 32, 32]),
    "2 replicas, root": ("--parallel.replicas 2 --parallel.extractor root", [ALL // 2, 0, ALL // 2, 0]),
    "2 replicas, replicated": ("--parallel.replicas 2 --parallel.extractor replicated", [ALL // 2] * 4),
    "ddp": ("--method ddp", [32, 32, 32, 32]),
    "pipeline": ("--method bp --parallel.schedule 1f1b --parallel.placement count", [ALL, 0, 0, 0]),
}


def trained(runtime: Runtime, folder: Path, flags: list[str], whole: bool) -> tuple[int, dict[str, Tensor]]:
    """How many images this rank has decoded while it trained, and its weights."""
    decoded = 0

    def counted(paths: list[str], *args: int, **settings: object) -> Tensor:
        nonlocal decoded
        decoded += len(paths)
        return read_images(paths, *args, **settings)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        if whole:
            patch.setattr(Loader, "only", lambda loader, rows_needed: loader)
        run = make_run(parse([*flags, "--run.dir", str(folder)]), runtime)
        patch.setattr("sidpar.data.reader.read_images", counted)
        assert run.train()
    run.folder.close()
    return decoded, {name: tensor.detach().clone() for name, tensor in run.stage.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_no_rank_decodes_what_it_does_not_need(case: str, tmp_path: Path) -> None:
    flags, expected = CASES[case]
    root = digits_folder(tmp_path / "images")
    arguments = [*FLAGS, "--data.root", str(root), *flags.split()]
    replicas = parse(arguments).parallel.replicas
    before, after = (
        run_ranks(trained, 4, tmp_path / f"whole={whole}", arguments, whole, replicas=replicas)
        for whole in (True, False)
    )
    assert [decoded for decoded, _ in before] == [ALL] * 4
    assert [decoded for decoded, _ in after] == expected
    for (_, found), (_, weights) in zip(after, before, strict=True):
        assert found.keys() == weights.keys()
        assert weights
        assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())


def opened(runtime: Runtime, folder: Path, flags: list[str]) -> int:
    """The processes that decode on this rank."""
    with pytest.MonkeyPatch.context() as patch:
        started: list[object] = []
        start = torch.multiprocessing.get_context("fork").Process.start  # type: ignore[attr-defined]

        def counted(process: object) -> None:
            started.append(process)
            start(process)

        patch.setattr(torch.multiprocessing.get_context("fork").Process, "start", counted)  # type: ignore[attr-defined]
        run = make_run(parse([*flags, "--run.dir", str(folder)]), runtime)
        started.clear()  # those that have read the files for their mean
        assert run.train()
    run.folder.close()
    return len(started)


def test_a_rank_that_reads_nothing_starts_no_workers(tmp_path: Path) -> None:
    """Of test images; those of training images are there since their mean was taken."""
    root = digits_folder(tmp_path / "images")
    arguments = [*FLAGS, "--data.root", str(root), "--data.workers", "1", "--parallel.extractor", "root"]
    assert run_ranks(opened, 2, tmp_path / "run", arguments) == [1, 0]
