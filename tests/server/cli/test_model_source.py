"""MODEL -> a directory: given, from a hand-made hub cache without a network, or bundled."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from server.model_source import ModelNotFound, locate_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def make_checkpoint(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def locate(model: str | None, tmp_path: Path, revision: str | None = None) -> Path:
    return locate_model(model, revision=revision, hub_cache=tmp_path / "hub")


def make_hub_cache(tmp_path: Path, branch: str = "main") -> Path:
    """What the hub library leaves behind after a download."""
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / branch).write_text(COMMIT)
    return make_checkpoint(repository / "snapshots" / COMMIT)


def test_a_directory(tmp_path: Path):
    directory = make_checkpoint(tmp_path / "model")
    assert locate(str(directory), tmp_path) == directory


def test_no_model_is_the_bundled_one(tmp_path: Path):
    directory = locate(None, tmp_path)
    assert directory.name == "demo_model"
    assert locate(str(directory), tmp_path) == directory


def test_a_hub_id_from_the_local_cache(tmp_path: Path):
    snapshot = make_hub_cache(tmp_path)
    assert locate("owner/name", tmp_path) == snapshot
    assert locate("owner/name", tmp_path, revision=COMMIT) == snapshot


def test_a_branch_from_the_local_cache(tmp_path: Path):
    snapshot = make_hub_cache(tmp_path, branch="dev")
    assert locate("owner/name", tmp_path, revision="dev") == snapshot
    with pytest.raises(ModelNotFound, match="owner/name is neither"):
        locate("owner/name", tmp_path)
    with pytest.raises(ModelNotFound, match="owner/name at v2 is neither"):
        locate("owner/name", tmp_path, revision="v2")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("owner/other", "owner/other is neither a local directory nor in the local hub cache"),
        ("/no/such/place", "/no/such/place is neither a directory nor a hub id"),
        ("name", "name is neither a directory nor a hub id"),
        ("../up/name", "neither a directory nor a hub id"),
    ],
)
def test_what_leads_nowhere(tmp_path: Path, model: str, said: str):
    with pytest.raises(ModelNotFound, match=said) as caught:
        locate(model, tmp_path)
    assert "\n" not in str(caught.value)


def test_directories_that_are_no_checkpoint(tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        locate(str(tmp_path), tmp_path)
    directory = make_checkpoint(tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match=r"holds no \*\.safetensors"):
        locate(str(directory), tmp_path)
    with pytest.raises(ModelNotFound, match="is a file"):
        locate(str(directory / "config.json"), tmp_path)
