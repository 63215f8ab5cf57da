"""The soak: begun first, waited for last, while the other tests of the GPU run beside it."""

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def soak_s(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--soak-s")


@pytest.fixture(scope="session")
def soak(soak_s: float, tiny_moe_dir: Path) -> Generator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.engine.gpu.soak", str(tiny_moe_dir)]
    process = subprocess.Popen(
        [*command, "--seconds", str(soak_s)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_soak_begins(soak: "subprocess.Popen[str]") -> None:
    assert soak.poll() is None


@pytest.mark.timeout(1800)
def test_a_soak_leaves_nothing_behind(soak: "subprocess.Popen[str]") -> None:
    said, _ = soak.communicate()
    assert soak.returncode == 0, said
    assert "rounds" in said
