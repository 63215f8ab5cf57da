"""The table of `make gpu` on few layers: that each of its figures is there, whatever they say.

What it compiles the table itself then need not compile: the kernels of more layers are the same.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
STEPS = ("1 decoding at 8192", "8 decoding at 8192", "64 decoding at 8192", "prefill of 2048")


def figures(printed: str) -> dict[str, dict[str, float]]:
    """Microseconds by step, then by what took them."""
    _, titles, *lines = printed.splitlines()
    assert re.split(r"\s{2,}", titles)[:4] == ["step", "what", "launches", "us"]
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        step, what, _, taken_us, *_ = re.split(r"\s{2,}", line)
        found.setdefault(step, {})[what] = float(taken_us)
    return found


def test_every_kernel_of_every_step_is_timed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu_table", "--layers", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = figures(done.stdout)
    assert tuple(found) == STEPS
    for step, taken_us in found.items():
        assert {"linear", "route", "torch and sampling"} <= set(taken_us), step
        assert not [what for what, us in taken_us.items() if not us], (step, done.stdout)
