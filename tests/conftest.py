"""Tiny checkpoints and their oracles, built once per test run."""

from pathlib import Path

import pytest

from tests.checkpoints import Oracle, build_checkpoint, load_oracle


@pytest.fixture(scope="session")
def tiny_moe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny_moe"), moe=True)


@pytest.fixture(scope="session")
def tiny_dense_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny_dense"), moe=False)


@pytest.fixture(scope="session")
def tiny_moe_oracle(tiny_moe_dir: Path) -> Oracle:
    return load_oracle(tiny_moe_dir)


@pytest.fixture(scope="session")
def tiny_dense_oracle(tiny_dense_dir: Path) -> Oracle:
    return load_oracle(tiny_dense_dir)
