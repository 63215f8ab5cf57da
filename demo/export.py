"""From a training state to a checkpoint directory in the layout of Qwen3.5-35B-A3B."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from demo.dataset import TEMPLATE_FILE
from demo.settings import model_config
from demo.tokenizer import TOKENIZER_CONFIG, generation_config

FLOAT32 = ("linear_attn.A_log", "linear_attn.norm.weight")


def tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official names; everything in bf16 but what Qwen3.5 files keep in fp32."""
    named: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        official = name if name.startswith("mtp.") else f"model.language_model.{name}"
        dtype = torch.float32 if name.endswith(FLOAT32) else torch.bfloat16
        named[official] = value.detach().to(dtype).contiguous()
    return named


def export(source: Path, target: Path) -> None:
    """Write the checkpoint of the training in `source` into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    state = torch.load(source / "training.pt", weights_only=True)["network"]
    save_file(tensors(state), target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    if not target.samefile(TEMPLATE_FILE.parent):
        shutil.copy(TEMPLATE_FILE, target)
    for name, content in (
        ("config.json", model_config(tokenizer)),
        ("generation_config.json", generation_config(tokenizer)),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        (target / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
