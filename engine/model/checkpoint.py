"""What a checkpoint folder holds: names, shapes and dtypes from the headers, then bytes on request.

Accepted are `model.safetensors`, shards under `model.safetensors.index.json`, or any *.safetensors
without an index. Nothing here knows the model; nothing else knows the files. The folder is not
trusted: an index may name plain files beside itself only, headers are checked against the file's
size, and whatever is wrong is one `CheckpointError` that says which file.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
FLOAT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}  # dtypes as safetensors headers spell them
QUANTISED_NAMES = (
    "weight_scale_inv",
    "weight_scale",
    "weight_packed",
    "qweight",
    "qzeros",
    "scales",
)


class CheckpointError(ValueError):
    """The checkpoint cannot be loaded; the message is one line a user can act on."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * FLOAT_BYTES.get(self.dtype, 1)


class Checkpoint:
    """The tensors of a folder by name. None of their bytes is held here."""

    def __init__(self, model_dir: Path) -> None:
        """Read every header. Raises `CheckpointError` for a damaged or a quantised checkpoint."""
        _refuse_quantised_config(model_dir)
        self.tensors: dict[str, StoredTensor] = {}
        index_path = model_dir / INDEX_NAME
        if (model_dir / SINGLE_NAME).is_file():
            self._add_file(model_dir / SINGLE_NAME)
        elif index_path.is_file():
            self._add_indexed(index_path)
        else:
            paths = sorted(model_dir.glob("*.safetensors"))
            if not paths:
                raise CheckpointError(_why_no_weights(model_dir))
            for path in paths:
                self._add_file(path)
        _refuse_quantised_tensors(self.tensors)

    def read(self, names: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the named tensors, file by file in the order of their bytes, each a fresh copy.

        Read, not mapped: so the process never holds more than its parameters and one tensor, and
        a file that shrinks under it is an error and not the end.
        """
        paths = sorted({self.tensors[name].path for name in names})
        for path in paths:
            with _open(path) as file:
                for name in file.offset_keys():
                    if name in names and self.tensors[name].path == path:
                        yield name, _read_tensor(file, path, name)

    def _add_file(self, path: Path) -> None:
        for name, tensor in _read_header(path).items():
            if name in self.tensors:
                other = self.tensors[name].path.name
                raise CheckpointError(f"{name} is stored twice: in {other} and in {path.name}")
            self.tensors[name] = tensor

    def _add_indexed(self, index_path: Path) -> None:
        """Take exactly the tensors that the index lists, each from the file that it says."""
        file_of = _read_index(index_path)
        headers = {
            file: _read_header(index_path.parent / file) for file in sorted(set(file_of.values()))
        }
        lost = [name for name, file in file_of.items() if name not in headers[file]]
        if lost:
            raise CheckpointError(
                f"{INDEX_NAME} lists {len(lost)} tensors that their files do not hold, "
                f"{lost[0]} in {file_of[lost[0]]} first: is the download complete?"
            )
        self.tensors = {name: headers[file][name] for name, file in file_of.items()}


def _read_index(index_path: Path) -> dict[str, str]:
    """Map tensor names to file names, all of them plain names of files beside the index."""
    try:
        file_of = json.loads(index_path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{INDEX_NAME} is not a JSON object with a weight_map") from None
    if not isinstance(file_of, dict) or not file_of:
        raise CheckpointError(f"{INDEX_NAME}: weight_map is not an object of tensor names")
    for file in set(map(str, file_of.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{INDEX_NAME} names {file!r}, which is not a .safetensors file of this folder"
            )
        if not (index_path.parent / file).is_file():
            raise CheckpointError(
                f"{INDEX_NAME} names {file}, which is not there: is the download complete?"
            )
    return file_of


def _read_header(path: Path) -> dict[str, StoredTensor]:
    with _open(path) as file:
        parts = {name: file.get_slice(name) for name in file.offset_keys()}
        return {
            name: StoredTensor(name, path, str(part.get_dtype()), tuple(part.get_shape()))
            for name, part in parts.items()
        }


def _open(path: Path) -> Any:
    """Open a file. safetensors checks its header against its size; a hostile one ends here."""
    try:
        return safe_open(path, framework="pt", device="cpu", backend="pread")
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            is_pointer = file.read(8) == b"version "
        if is_pointer:
            why = "it is a Git LFS pointer, not the weights: run `git lfs pull`"
        else:
            why = f"damaged or incomplete ({error})"
        raise CheckpointError(f"cannot read {path.name}: {why}") from None


def _read_tensor(file: Any, path: Path, name: str) -> torch.Tensor:
    try:
        return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {name} from {path.name}: {error}") from None


def _refuse_quantised_config(model_dir: Path) -> None:
    try:
        raw = json.loads((model_dir / "config.json").read_bytes())
        levels: list[dict[str, Any]] = [raw, raw.get("text_config") or {}]
        found = [level.get("quantization_config") for level in levels]
        method = next((str(part.get("quant_method")) for part in found if part), None)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"cannot read config.json in {model_dir}: {error}") from None
    if method:
        raise CheckpointError(_not_served(f"quant_method {method}"))


def _refuse_quantised_tensors(tensors: Mapping[str, StoredTensor]) -> None:
    for tensor in tensors.values():
        if tensor.name.endswith(QUANTISED_NAMES) or tensor.dtype not in FLOAT_BYTES:
            raise CheckpointError(_not_served(f"{tensor.name} is {tensor.dtype}"))


def _not_served(found: str) -> str:
    return (
        f"this checkpoint is quantised, or not stored as BF16, F16 or F32 ({found}); "
        "that is not served: use the unquantised release of this model"
    )


def _why_no_weights(model_dir: Path) -> str:
    if any(model_dir.glob("*.bin")) or any(model_dir.glob("*.pt")):
        return (
            f"{model_dir} holds pickled weights only, which are code and never loaded: "
            "convert them to safetensors"
        )
    return f"{model_dir} holds no .safetensors file: is the download complete?"
