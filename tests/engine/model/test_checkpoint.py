"""What a folder may hold: every damaged, hostile or quantised one is one clear error."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import ModelConfig
from engine.model.checkpoint import Checkpoint, CheckpointError
from engine.model.weights import load_model
from tests.checkpoints import edit_config, edit_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path) -> None:
    load_model(folder, ModelConfig.from_dir(folder), shows_progress=False)


@pytest.fixture
def moe_dir(tiny_moe_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_moe_dir, tmp_path / "moe")


# Quantised checkpoints


def test_a_quantisation_config_is_refused(moe_dir: Path) -> None:
    edit_config(moe_dir, quantization_config={"quant_method": "fp8"})
    with pytest.raises(CheckpointError, match=r"quantised.*quant_method fp8.*unquantised release"):
        load(moe_dir)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.mlp.gate.weight", torch.zeros(8, 64, dtype=torch.float8_e4m3fn)),
        ("model.layers.0.mlp.gate.weight", torch.zeros(8, 64, dtype=torch.float64)),
        ("model.layers.0.mlp.gate.weight_scale_inv", torch.zeros(1, 1)),
        ("model.layers.0.mlp.experts.0.up_proj.qweight", torch.zeros(8, 8, dtype=torch.int32)),
    ],
)
def test_quantised_tensors_are_refused(moe_dir: Path, name: str, tensor: torch.Tensor) -> None:
    edit_tensors(moe_dir, lambda tensors: tensors | {name: tensor})
    with pytest.raises(CheckpointError, match=f"quantised.*{name} is .*unquantised release"):
        load(moe_dir)


# Damaged and hostile files


def test_one_name_in_two_files_is_refused(moe_dir: Path) -> None:
    (moe_dir / WEIGHTS).rename(moe_dir / "a.safetensors")
    save_file({"model.norm.weight": torch.zeros(64)}, moe_dir / "b.safetensors")
    with pytest.raises(
        CheckpointError, match=r"norm\.weight is stored twice: in a\.safetensors and in b\.safe"
    ):
        load(moe_dir)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_into_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def claim_a_huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def claim_a_header_beyond_the_file(path: Path) -> None:
    path.write_bytes((50_000_000).to_bytes(8, "little") + path.read_bytes()[8:])


def break_the_header(path: Path) -> None:
    path.write_bytes((16).to_bytes(8, "little") + b'{"a": [[[[[[[[[[' + bytes(100))


def point_outside_the_file(path: Path) -> None:
    header = {"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 2**40]}}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(256))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_into_header,
        make_empty,
        claim_a_huge_header,
        claim_a_header_beyond_the_file,
        break_the_header,
        point_outside_the_file,
    ],
)
def test_a_damaged_file_is_named(moe_dir: Path, damage: Callable[[Path], None]) -> None:
    damage(moe_dir / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"cannot read model\.safetensors: damaged or inc"):
        load(moe_dir)


def test_a_file_that_shrinks_after_its_header_was_read(moe_dir: Path) -> None:
    checkpoint = Checkpoint(moe_dir)
    reading = checkpoint.read(set(checkpoint.tensors))
    next(reading)
    os.truncate(moe_dir / WEIGHTS, 100_000)
    with pytest.raises(CheckpointError, match=r"^cannot read .* from model\.safetensors: "):
        list(reading)


def test_a_git_lfs_pointer_is_recognised(moe_dir: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (moe_dir / WEIGHTS).write_text(pointer)
    with pytest.raises(CheckpointError, match="Git LFS pointer"):
        load(moe_dir)


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "..", ""],
)
def test_an_index_may_not_leave_its_folder(moe_dir: Path, file: str) -> None:
    shutil.copy(moe_dir / WEIGHTS, moe_dir.parent / "x.safetensors")
    (moe_dir / WEIGHTS).unlink()
    (moe_dir / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file of this folder"):
        load(moe_dir)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": [1]}',
        '{"weight_map": null}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_broken_index_is_named(moe_dir: Path, text: str) -> None:
    (moe_dir / WEIGHTS).unlink()
    (moe_dir / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"^model\.safetensors\.index\.json"):
        load(moe_dir)


def test_an_index_with_a_number_for_a_file(moe_dir: Path) -> None:
    (moe_dir / WEIGHTS).unlink()
    (moe_dir / INDEX).write_text('{"weight_map": {"model.norm.weight": 3}}')
    with pytest.raises(CheckpointError, match="names '3'"):
        load(moe_dir)


def test_an_incomplete_download(moe_dir: Path) -> None:
    tensors = load_file(moe_dir / WEIGHTS)
    (moe_dir / WEIGHTS).unlink()
    weight_map = dict.fromkeys(tensors, "one.safetensors")
    (moe_dir / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"names one\.safetensors, which is not there"):
        load(moe_dir)
    save_file({"model.norm.weight": torch.zeros(64)}, moe_dir / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"lists .* tensors that their files do not hold"):
        load(moe_dir)


def test_a_folder_without_weights(moe_dir: Path) -> None:
    (moe_dir / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        load(moe_dir)
    (moe_dir / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        load(moe_dir)


def test_an_unreadable_config(tiny_moe_dir: Path, moe_dir: Path) -> None:
    config = ModelConfig.from_dir(tiny_moe_dir)
    for text in ("", "[]", '{"text_config": 3}'):
        (moe_dir / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"cannot read config\.json"):
            load_model(moe_dir, config, shows_progress=False)
