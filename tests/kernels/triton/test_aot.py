"""Every kernel compiles for every target, needs no more than that has, and is in docs/gpu.md.

Triton decides at its import whether it compiles or interprets, so the compiler is a command of its
own. It keeps what it compiled, so only the first run of these tests after a change is long.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "engine.launches", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "capability",
    [90, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 89, 100, 120))],
)
def test_kernels_fit(capability: int) -> None:
    done = run("compile", "--ranks", "1", "--capability", str(capability))
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[2:]
    names = {row.split(" | ")[0].removeprefix("| ") for row in rows}
    assert {"linear", "decode", "recur", "attention_decode", "attention_prefill"} <= names
    assert {"route", "gate_up", "rms_norm", "draw_from_parts"} <= names


@pytest.mark.timeout(900)
def test_the_document_is_up_to_date() -> None:
    done = run("check")
    assert done.returncode == 0, done.stderr


def test_what_the_interpreter_would_run_is_not_compiled() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "engine.launches", "compile", "--ranks", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "TRITON_INTERPRET=1 was set at its import" in done.stderr
