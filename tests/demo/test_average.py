from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.average import average


def test_the_mean_of_the_weights_and_the_rest_of_the_last(tmp_path: Path):
    for name, value in (("a", 1.0), ("b", 4.0)):
        (tmp_path / name).mkdir()
        tensor = torch.full((2, 3), value, dtype=torch.bfloat16)
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(name)
    average([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    (found,) = load_file(tmp_path / "c/model.safetensors").values()
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[2.5] * 3] * 2
    assert (tmp_path / "c/config.json").read_text() == "b"
    save_file({"v": torch.zeros(1)}, tmp_path / "a/model.safetensors")
    with pytest.raises(ValueError, match="different tensors"):
        average([tmp_path / "a", tmp_path / "b"], tmp_path / "d")
