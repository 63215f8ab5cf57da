"""Average the weights of checkpoints: `python -m demo.average A B --out C`.

Checkpoints of one training, or of trainings that went on from one another, lie in one valley: their
mean is often better than each (Izmailov et al., "Averaging Weights Leads to Wider Optima", 2018).
What is not weights is copied from the last.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Raises ValueError for checkpoints that are not of one kind."""
    loaded = [load_file(checkpoint / WEIGHTS) for checkpoint in checkpoints]
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in loaded]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("the checkpoints have different tensors")
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoints[-1].iterdir():
        if file.is_file() and file.name != WEIGHTS:
            shutil.copy(file, out)
    mean = {
        name: torch.stack([tensors[name].float() for tensors in loaded]).mean(0).to(tensor.dtype)
        for name, tensor in loaded[0].items()
    }
    save_file(mean, out / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    average(arguments.checkpoints, arguments.out)
