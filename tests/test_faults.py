"""A short chaos run: faults from outside, the same command again, and every row there once.

`make chaos` does many of each kind; here is one of some kinds that no other test has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KINDS = ("writer killed", "node killed", "disk full")
COLUMNS = ("runs", "faults", "starts", "lost", "doubled", "differing")


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, int]]:
    """What `chaos.py` counts, by kind, on a cluster of its own."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find the processes to kill")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "chaos.py", "--rounds", "1", "--kinds", ",".join(KINDS)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    return {row[0].strip(): dict(zip(COLUMNS, map(int, row[1:7]))) for row in rows[2:]}


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_fault_and_the_same_command_again_every_row_is_there_once(table, kind):
    if kind == "disk full" and kind not in table:
        pytest.skip("no disk may be mounted here")
    found = table[kind]
    assert found["faults"] >= 1
    assert (found["lost"], found["doubled"], found["differing"]) == (0, 0, 0)
