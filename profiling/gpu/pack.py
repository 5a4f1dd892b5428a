"""Gathers what `profiling/gpu/run.py` needs on a machine without a network, in profiling/gpu/pack, which git ignores.

    python profiling/gpu/pack.py --data data/FashionMNIST

The machine brings Python 3.12, torch 2.11 and torchvision, with their usual companions (numpy, pyyaml, scikit-learn,
matplotlib, pytest, ...). What it may lack of sidpar's dependencies are a few packages in pure Python: their wheels are
taken here. Of datasets, folders are taken as they are, of the names that the loaders look for.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACK = Path(__file__).parent / "pack"
WHEELS, DATA = PACK / "wheels", PACK / "data"
PURE = ("jsonargparse", "docstring-parser", "typeshed-client", "importlib-resources")
MOST = 60 * 2**20
"""Bytes: what travels to such a machine with the checkout."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of datasets, or files, to take along")
    parser.add_argument("--no-wheels", action="store_true", help="the machine has all packages")
    given = parser.parse_args(arguments)
    shutil.rmtree(PACK, ignore_errors=True)
    DATA.mkdir(parents=True)
    for source in given.data:
        if source.is_dir():
            shutil.copytree(source, DATA / source.name)
        else:
            shutil.copy(source, DATA)
    if not given.no_wheels:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        target = ["--python-version", "3.12", "--dest", str(WHEELS)]
        subprocess.run([*download, *target, *PURE], check=True)
    size = sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file())
    if size > MOST:
        raise SystemExit(f"the pack has {size / 2**20:.1f} MiB, and may have {MOST / 2**20:.0f}: take less data along")
    print(f"{PACK}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
