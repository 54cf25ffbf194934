"""A share of benchmarks/faults.py: a run that is killed, or whose files cannot be written, ends like an undisturbed one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "faults.py"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
@pytest.mark.slow  # `make faults` runs it
def test_disturbed_runs_end_like_undisturbed_ones():
    """Every command is killed once, and once an operation of it fails."""
    counts = ("--kills", "23", "--failures", "23")
    done = subprocess.run([sys.executable, SCRIPT, *counts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    kills, moments, failures, wrong = map(int, done.stdout.splitlines()[-1].split("|")[2:-1])
    assert (kills + moments, failures, wrong) == (23, 23, 0)
