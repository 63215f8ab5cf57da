"""Tiny checkpoints and their oracles, built once per test run; how hypothesis looks for examples.

The suite tries the same examples in every run, so that what is red was made red by a change. To
look for new ones: `pytest --hypothesis-profile=explore`.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

import tests.interpreter  # noqa: F401  # before transformers
from tests.checkpoints import Oracle, build_checkpoint, load_oracle

settings.register_profile("explore")
settings.register_profile("suite", derandomize=True)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-s", type=float, default=300.0, metavar="S", help="length of the soak on a GPU"
    )


@pytest.hookimpl(trylast=True)  # when all marks are there
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is false")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_moe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny_moe"), moe=True)


@pytest.fixture(scope="session")
def tiny_dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny_dense"), moe=False)


@pytest.fixture(scope="session", params=["moe", "dense"])
def tiny_vision_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(f"tiny_vision_{request.param}")
    return build_checkpoint(folder, moe=request.param == "moe", layout="vision")


@pytest.fixture(scope="session")
def tiny_vision_oracle(tiny_vision_dir: Path) -> Oracle:
    return load_oracle(tiny_vision_dir)


@pytest.fixture(scope="session")
def tiny_moe_oracle(tiny_moe_dir: Path) -> Oracle:
    return load_oracle(tiny_moe_dir)


@pytest.fixture(scope="session")
def tiny_dense_oracle(tiny_dense_dir: Path) -> Oracle:
    return load_oracle(tiny_dense_dir)
