"""A share of benchmarks/faults.py: a run that is killed, or whose files cannot be written, ends like an undisturbed one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "faults.py"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
@pytest.mark.slow
@pytest.mark.parametrize("command", ["name: neighbor", ""])
def test_a_disturbed_run_ends_like_an_undisturbed_one(command):
    counts = ("--kills", "4", "--failures", "3") if command else ("--kills", "51", "--failures", "34")
    done = subprocess.run([sys.executable, SCRIPT, *counts, "--only", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    last = done.stdout.splitlines()[-1]
    kills, moments, failures, wrong = map(int, last.split("|")[2:-1])
    assert (kills + moments, failures, wrong) == (int(counts[1]), int(counts[3]), 0)
