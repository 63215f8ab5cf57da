"""The model that is there when no other is given: tiny, random and of the right architecture.

`deltaserve serve` without a model serves the babbler, so that a fresh machine has a working API
within seconds and without a download. It is a complete checkpoint directory in the layout of
Qwen3.5-35B-A3B (same tensor names, same kinds of layers, a tokenizer with the same added tokens,
a chat template with the same format), only small, and its weights are random: what it says is
noise. Everything that loads a real checkpoint loads this one by the same path.

The directory is built on first use into the user's cache folder and then only read. It is built
beside its final place and renamed into it, so a directory with the final name is always complete,
and two processes that build at once end up with the same one.
"""

import json
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from server.babbler.checkpoint import config, write_weights
from server.babbler.tokenizer import TOKENIZER_CONFIG, generation_config, train_tokenizer

RECIPE = 1  # goes up when the files below come out different, so that old ones are left alone
NAME = "babbler"


def build_babbler(cache_dir: Path) -> Path:
    """The babbler's directory under `cache_dir`, built if it is not there yet."""
    model_dir = cache_dir / f"{NAME}-{RECIPE}"
    if model_dir.is_dir():
        return model_dir
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{NAME}-partial-", dir=cache_dir))
    try:
        _write(partial)
        partial.chmod(0o755)
        try:
            os.rename(partial, model_dir)
        except OSError:
            if not model_dir.is_dir():  # else another process was faster, with the same files
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model_dir


def _write(directory: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    template = resources.files(__name__).joinpath("chat_template.jinja").read_text("utf-8")
    (directory / "chat_template.jinja").write_text(template, "utf-8")
    model = config(tokenizer)
    for name, content in (
        ("config.json", model),
        ("generation_config.json", generation_config(tokenizer)),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    write_weights(directory / "model.safetensors", model, tokenizer)
