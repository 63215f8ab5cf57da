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
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak") / "log"


@pytest.fixture(scope="session")
def soak(soak_s: float, tiny_moe_dir: Path, log: Path) -> Generator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "tests.engine.gpu.soak", str(tiny_moe_dir)]
    with log.open("w") as file:  # not a pipe: nobody would read it for five minutes
        process = subprocess.Popen(
            [*command, "--seconds", str(soak_s)], cwd=ROOT, stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_soak_begins(soak: "subprocess.Popen[bytes]") -> None:
    assert soak.poll() is None


@pytest.mark.timeout(1800)
def test_a_soak_leaves_nothing_behind(soak: "subprocess.Popen[bytes]", log: Path) -> None:
    assert soak.wait() == 0, log.read_text()
    assert "rounds" in log.read_text()
