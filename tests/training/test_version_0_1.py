"""What version 0.1 has left on disk goes on: its configurations, its checkpoints, its run folders.

`version_0_1/` holds four runs of 16 steps, made with the commit in made_with.json: the checkpoint of step 10, and what
the run ended with. Arithmetic differs in its last bits between processors and versions of torch. So results are
compared bit for bit where plain PyTorch still computes what it did then, and to six digits elsewhere.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sidpar
from sidpar.data.datasets import load
from tests.training.test_resume import finish

OLD = Path(__file__).parent / "version_0_1"
RUNS = {"fused": 2, "streaming": 2, "pipeline": 2, "local": 1}
"""By name, on how many ranks. They cover a sharded, a root and a cut extractor; Adam and SGD; a stream with staleness 2
and weight prediction; clipping, warmup, label noise, several alpha, reverse KL."""


def arithmetic() -> str:
    """A checksum of what plain PyTorch computes here: three steps of a network of the runs' sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.randn(200, 64)), torch.randint(0, 10, (200,))).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    digest = hashlib.blake2b(digest_size=16)
    for parameter in network.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def same(found: Tensor, expected: Tensor) -> bool:
    """To six digits; where arithmetic has stayed the same, to the bit."""
    if arithmetic() == json.loads((OLD / "made_with.json").read_text())["arithmetic"]:
        return torch.equal(found, expected)
    return bool(((found - expected).abs() < 1e-6).all())


@pytest.mark.processes
@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_goes_on(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(OLD / name, folder, ignore=shutil.ignore_patterns("weights.*", "summary.*", "beliefs.*"))
    assert finish(RUNS[name], folder, ["--config", str(OLD / name / "config.yaml")])
    found, expected = load_file(folder / "weights.safetensors"), load_file(OLD / name / "weights.safetensors")
    assert found.keys() == expected.keys()
    assert all(same(tensor, expected[parameter]) for parameter, tensor in found.items())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (OLD / name / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in before if line["step"] <= 10]
    assert rows[: len(kept)] == kept
    assert [row["step"] for row in rows] == [row["step"] for row in before]
    assert json.loads((folder / "summary.json").read_text())["resumed_at"] == [10]


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_predicts(name: str) -> None:
    cascade, seen = sidpar.load(OLD / name), sidpar.load_preprocessing(OLD / name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        beliefs = cascade.beliefs(seen.normalise(load("digits").test.images[:8]))
    torch.set_num_threads(threads)
    assert same(beliefs, torch.tensor(json.loads((OLD / name / "beliefs.json").read_text())))


@pytest.mark.processes
def test_another_rule_does_not_go_on_in_an_old_folder(tmp_path: Path) -> None:
    """The old configuration says nothing of rules, so it means SID."""
    folder = tmp_path / "fused"
    shutil.copytree(OLD / "fused", folder, ignore=shutil.ignore_patterns("weights.*", "summary.*", "beliefs.*"))
    flags = ["--config", str(OLD / "fused" / "config.yaml"), "--objective.alpha", "0.5"]
    with pytest.raises(AssertionError, match="objective.rule: 'sid' there, 'deep_supervision' here"):
        finish(2, folder, [*flags, "--objective.rule", "deep_supervision"])
