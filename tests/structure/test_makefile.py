"""`make gpu` prints its table whatever the tests say, and fails if either does."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
echo "ran $*"
case "$*" in
  *pytest*) exit {of_tests} ;;
  *gpu_table*) exit {of_table} ;;
esac
"""


def make_gpu(folder: Path, *, of_tests: int = 0, of_table: int = 0) -> tuple[int, list[str], str]:
    """How `make gpu` ends where the tests and the table end so; what it ran, and its errors."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON.format(of_tests=of_tests, of_table=of_table))
    python.chmod(0o755)
    (folder / "installed-for-tests").touch()
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "--silent", "gpu", f"VENV={folder}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    ran = [line.removeprefix("ran ") for line in done.stdout.splitlines() if "ran " in line]
    return done.returncode, ran, done.stderr


@pytest.mark.parametrize(
    ("of_tests", "of_table", "failed"),
    [(0, 0, ""), (1, 0, "failed: tests"), (0, 2, "failed: table"), (1, 2, "failed: tests, table")],
)
def test_the_table_is_printed_though_tests_are_red(
    of_tests: int, of_table: int, failed: str, tmp_path: Path
) -> None:
    code, ran, said = make_gpu(tmp_path, of_tests=of_tests, of_table=of_table)
    assert ran == ["-m pytest -m gpu", "-m tests.benchmarks.gpu_table"]
    assert (code != 0) == bool(failed)
    assert failed in said
