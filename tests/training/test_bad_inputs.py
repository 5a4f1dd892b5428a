"""What a person may get wrong, from the flag to the checkpoint: one clear error, the same on every rank, and nothing is
written. Through the command's own parser and job, on two real ranks, all mistakes in one pair of processes."""

import contextlib
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sidpar.distributed.runtime import Runtime
from sidpar.train import parse
from sidpar.training.run import train
from tests.data.image_files import digits_folder
from tests.harness import run_ranks

BASE = ["--model.name", "wide_mlp", "--model.width", "8", "--model.num_refiners", "4", "--data.batch_size", "500"]
BASE += ["--optim.epochs", "2", "--run.tensorboard", "false", "--checkpoint.every", "3"]
IMAGES = "--data.name image_folder --data.image_size 8 --data.workers 0 --data.batch_size 10 --data.root"

SETTINGS = {
    "--optim.lr -1": "optim.lr must be a positive number, got -1.0",
    "--optim.lr fast": "optim.lr: expected",
    "--optim.rate 1": "optim.rate",
    "--optim.epochs -1": "optim.epochs must be at least 0, got -1",
    "--optim.name sgd --optim.momentum 1.5": "optim.momentum must lie in [0, 1), got 1.5",
    "--optim.name sgd --optim.momentum 0 --optim.nesterov true": "optim.nesterov=true needs optim.momentum > 0, got 0",
    "--optim.momentum 0.9": "optim.momentum=0.9 would have no effect, because optim.name=adam has no momentum setting",
    "--optim.warmup_epochs 9": "optim.warmup_epochs=9 is longer than optim.epochs=2: shorten it",
    "--optim.clip 0": "optim.clip must be a positive number, got 0",
    "--data.batch_size 0": "data.batch_size must be at least 1, got 0",
    "--data.name mnist": "data.name=mnist is unknown",
    "--data.root somewhere": "data.root=somewhere would have no effect, because data.name=digits is not read from",
    "--data.workers 2": "data.workers=2 would have no effect",
    "--data.label_noise 1": "data.label_noise must lie in [0, 1), got 1",
    "--model.num_refiners 0": "model.num_refiners must be at least 1, got 0",
    "--model.name simple_cnn": "model.width=8 would have no effect, because model.name=simple_cnn has fixed sizes",
    "--model.options.width 3": "model.options",
    "--objective.alpha 1.5": "objective.alpha",
    "--objective.alpha [0.5,0]": "objective.alpha",
    "--objective.kl reverse": "label_smoothing",
    "--parallel.microbatches 0": "parallel.microbatches must be at least 1, got 0",
    "--parallel.replicas 0": "parallel.replicas must be at least 1, got 0",
    "--parallel.staleness 1": "parallel.staleness=1 would have no effect",
    "--parallel.extractor cut": "method=sid does not offer parallel.extractor=cut; choose one of",
    "--parallel.schedule 1f1b": "method=sid does not offer parallel.schedule=1f1b; choose one of",
    "--parallel.step_timeout 0": "parallel.step_timeout must be a positive number, got 0",
    "--method bp --parallel.sync_batchnorm true": "method=bp divides no microbatch among ranks; method=ddp does",
    "--method local --parallel.sync_batchnorm true": "because method=local runs in one process",
    "--method ddp --parallel.extractor root": "method=ddp has the whole cascade on every rank",
    "--bp.checkpointing true": "only method=bp and method=ddp read it",
    "--compute.channels_last true": "model.name=wide_mlp has no convolutions",
    "--checkpoint.every -1": "checkpoint.every must be at least 0, got -1",
    "--checkpoint.keep 0": "checkpoint.keep must be at least 1, got 0",
    "--checkpoint.every 0 --checkpoint.keep 5": "checkpoint.keep=5 would have no effect, because checkpoint.every=0",
    "--run.log_every 0": "run.log_every must be at least 1, got 0",
    "--run.name a/b": "run.name is part of a folder's name, so it must have 1 to 200 characters and no slash, got",
    "--run.seed -1": "run.seed must be at least 0, got -1",
    "--config {tmp}/none.yaml": "none.yaml",
    "--config {tmp}/broken.yaml": "broken.yaml: line 1, column 9: expected the node content",
    "--config {tmp}/unknown.yaml": "optimizer",
    "--config {tmp}/empty.yaml": "empty.yaml: expected settings by name, such as optim: {lr: 0.001}, got nothing",
    "--config {tmp}/list.yaml": "list.yaml: expected settings by name, such as optim: {lr: 0.001}, got ['optim']",
    "--config {tmp}/group_number.yaml": "optim: expected settings by name, such as optim.name, got 3",
    "--config {tmp}/group_null.yaml": "optim: expected settings by name, such as optim.name, got null",
    "--config {tmp}/group_list.yaml": "data: expected settings by name, such as data.name, got ['digits']",
    "--config {tmp}/setting_mapping.yaml": "optim.lr: expected float, got {'base': 1}",
    "--config {tmp}/setting_null.yaml": "optim.lr: expected float, got null",
    "--config {tmp}/options.yaml": "model.options: expected dict or null, got 3",
    "--config {tmp}/twice.yaml": "twice.yaml: lr is given twice, in line 2 and in line 3: remove one",
    "--parallel.init_timeout .inf": "parallel.init_timeout must be a finite number, got inf",
}
"""Refused by the parser; on the command line with exit code 2 and one line."""

TOPOLOGY = {
    "--model.num_refiners 1": "1 refiners cannot be placed on 2 ranks",
    "--parallel.placement [1,2]": "placement [1, 2] has 2 ranks and 3 refiners, but 4 refiners",
    "--parallel.placement [4,0]": "give 2 numbers of at least 1 that add up to 4",
    "--parallel.placement cost --parallel.costs [1]": "parallel.costs lists 1 numbers, but model.num_refiners=4",
    "--objective.alpha [0.5,0.5]": "objective.alpha lists 2 numbers, but the cascade has 4 refiners",
    "--method local": "the local engine runs in one process, but there are 2 ranks",
    "--method bp --parallel.microbatches 1": "it needs at least 2 microbatches",
    "--method bp --bp.checkpointing true": "start one process, or use method=ddp",
}

FILES = {
    "broken": "optim: [",
    "unknown": "optimizer: {lr: 1}",
    "empty": "# nothing yet\n",
    "list": "- optim",
    "group_number": "optim: 3",
    "group_null": "optim:",
    "group_list": "data: [digits]",
    "setting_mapping": "optim: {lr: {base: 1}}",
    "setting_null": "optim: {lr: null}",
    "options": "model: {options: 3}",
    "twice": "optim:\n  lr: 1\n  lr: 2",
}
"""Configuration files, by name."""

DATA = {
    "--data.name cifar10 --data.root {tmp}/none": "cifar10 is not in torchvision's layout under data.root=",
    "--data.name tiny_imagenet --data.root {tmp}/none": "none",
    f"{IMAGES} {{tmp}}/none": "none",
    f"{IMAGES} {{tmp}}/one_class": "class",
    f"{IMAGES} {{tmp}}/empty_class": "no images found in",
    f"{IMAGES} {{tmp}}/other_class": "train",
    f"{IMAGES} {{tmp}}/corrupt": "cannot be read as an image",
    "--model.builder nowhere:build": "there is no module nowhere",
    "--model.builder tests.own_networks:no_cascade": "returns a Linear, but must return a sidpar.Cascade",
    "--model.builder tests.own_networks:partly_normalised --parallel.refiner_execution stacked": "refiner 2 writes "
    "buffers in its forward (norm.running_mean, ",
    "--model.builder tests.own_networks:other_images": "the extractor does not take inputs of shape [B, *[1, 8, 8]]",
}

FOLDERS = {
    "--run.dir {tmp}/file/run": "cannot be written",
    "--run.dir {tmp}/foreign": "already holds a run (metrics.jsonl), but no config.yaml that can be read",
    "--run.dir {tmp}/begun --optim.lr 0.5": "holds a run with other settings (optim.lr: 0.001 there, 0.5 here)",
    "--run.dir {tmp}/truncated": "step_0000000003: __0_0.distcp is damaged: its checksum differs",
    "--run.dir {tmp}/missing": "step_0000000003: __1_0.distcp is missing",
    "--run.dir {tmp}/garbage": "step_0000000003: .metadata is damaged: its checksum differs",
    "--run.dir {tmp}/no_progress": "step_0000000003: progress.json is damaged: its checksum differs",
    "--run.dir {tmp}/renamed": "step_0000000005: progress.json is of step 3",
    "--run.dir {tmp}/scrambled": "step_0000000003: __0_0.distcp is damaged: its checksum differs",
    "--run.dir {tmp}/unsealed": "step_0000000003: __1_0.distcp.crc32 is missing",
    "--run.dir {tmp}/untold": "step_0000000003: progress.json lacks data",
    "--run.dir {tmp}/narrow": "is of another network: extractor.1.bias is [16] there and [8] here",
    "--run.dir {tmp}/other_data": "is of other data (training images: 99 there, 1437 here)",
}

MISTAKES = SETTINGS | TOPOLOGY | DATA | FOLDERS


def refusals(runtime: Runtime, tmp: str) -> dict[str, str]:
    """What this rank is told of each mistake."""
    told = {}
    for mistake in MISTAKES:
        flags = mistake.format(tmp=tmp).split()
        place = [] if "--run.dir" in flags else ["--run.dir", f"{tmp}/never"]
        place += [] if "--model.builder" not in flags else ["--model.name", "null", "--model.width", "null"]
        errors = io.StringIO()
        try:
            with contextlib.redirect_stderr(errors):
                train(parse([*BASE, *place, *flags]), runtime)
            told[mistake] = "nothing"
        except ValueError as error:
            told[mistake] = f"{type(error).__name__}: {error}"
        except SystemExit as exit:
            told[mistake] = f"exit {exit.code}: {errors.getvalue()}"
    return told


def damage_run(source: Path, target: Path, harm: Callable[[Path], object]) -> None:
    shutil.copytree(source, target)
    harm(target / "checkpoints" / "step_0000000003")


def change_progress(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Into another one that is whole."""
    progress = json.loads((checkpoint / "progress.json").read_text())
    change(progress)
    content = json.dumps(progress).encode()
    (checkpoint / "progress.json").write_bytes(content)
    (checkpoint / "progress.json.crc32").write_text(f"{zlib.crc32(content):08x}")


def scramble(checkpoint: Path) -> None:
    """The right size, and nothing of the content."""
    for file in checkpoint.glob("*.distcp"):
        file.write_bytes(bytes(file.stat().st_size))


def cut_file(checkpoint: Path) -> None:
    content = (checkpoint / "__0_0.distcp").read_bytes()
    (checkpoint / "__0_0.distcp").write_bytes(content[:100])


def begin(runtime: Runtime, folder: str, *flags: str) -> None:
    train(parse([*BASE, *flags, "--run.dir", folder]), runtime)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    tmp = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (tmp / f"{name}.yaml").write_text(text)
    (tmp / "file").write_text("")
    (tmp / "foreign").mkdir()
    (tmp / "foreign" / "metrics.jsonl").write_text("{}\n")
    make_images(tmp)
    begun = tmp / "begun"
    run_ranks(begin, 2, str(begun))
    run_ranks(begin, 2, str(tmp / "wide"), "--model.width", "16")
    for folder in (begun, tmp / "wide"):
        (folder / "summary.json").unlink()
    damage_run(begun, tmp / "truncated", cut_file)
    damage_run(begun, tmp / "missing", lambda path: (path / "__1_0.distcp").unlink())
    damage_run(begun, tmp / "garbage", lambda path: (path / ".metadata").write_bytes(b"nonsense"))
    damage_run(begun, tmp / "no_progress", lambda path: (path / "progress.json").write_text("{"))
    damage_run(begun, tmp / "renamed", lambda path: path.rename(path.with_name("step_0000000005")))
    damage_run(begun, tmp / "scrambled", scramble)
    damage_run(begun, tmp / "unsealed", lambda path: (path / "__1_0.distcp.crc32").unlink())
    damage_run(begun, tmp / "untold", lambda path: change_progress(path, lambda progress: progress.pop("data")))
    other = {"training images": 99}
    damage_run(begun, tmp / "other_data", lambda path: change_progress(path, lambda told: told["data"].update(other)))
    shutil.copytree(tmp / "wide", tmp / "narrow")
    shutil.copy(begun / "config.yaml", tmp / "narrow")
    before = sorted(tmp.rglob("*"))
    answers: list[dict[str, str]] = run_ranks(refusals, 2, str(tmp))
    assert not (tmp / "never").exists(), "nothing is written for a run that cannot start"
    left = [path for path in sorted(tmp.rglob("*")) if path not in before and "logs" not in path.parts]
    assert left == [], "nor beside one that cannot go on"
    return answers


def make_images(tmp: Path) -> None:
    """Folders of images, each with something wrong."""
    for name in ("one_class", "empty_class", "other_class", "corrupt"):
        digits_folder(tmp / name)
    for part in ("train", "val"):
        for folder in sorted((tmp / "one_class" / part).iterdir())[1:]:
            shutil.rmtree(folder)
    empty = min((tmp / "empty_class" / "train").iterdir())
    for file in empty.iterdir():
        file.unlink()
    (tmp / "other_class" / "val" / "unheard_of").mkdir()
    Image.new("L", (8, 8)).save(tmp / "other_class" / "val" / "unheard_of" / "1.png")
    first = min((tmp / "corrupt" / "train").rglob("*.png"))
    first.write_bytes(first.read_bytes()[:60])


@pytest.mark.processes
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_on_every_rank(mistake: str, told: list[dict[str, str]]) -> None:
    first, second = (answer[mistake] for answer in told)
    assert first == second
    assert MISTAKES[mistake] in first
    kind = "exit 2: " if mistake in SETTINGS else "UsageError: "
    assert first.startswith(kind)
    lines = [line for line in first.splitlines() if line and not re.match(r"(exit 2: )?usage:", line)]
    assert len(lines) <= 4, "in a line or so"


def test_there_are_forty() -> None:
    assert len(MISTAKES) >= 40
