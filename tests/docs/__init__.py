import sys

from tests.harness import ROOT

sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "profiling")]  # where `macros` and `reporting` are
