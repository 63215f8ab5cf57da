"""Fits a checkpoint into a model: every stored tensor goes straight to its place, or is named.

The model says where things belong: `Qwen3_5.places` maps a checkpoint name to a view of one of its
parameters, of the stored tensor's shape. Fused parameters are several views of one tensor, so
fusing costs nothing and nothing is held twice. Here names are brought to one spelling, what is
there is compared with what is needed (before any byte is read), and bytes are copied. The vision
tower is a second model in the same files, under its prefix; some have its configuration only, and
these are served as text.

The copy in `_fill` is the only line that sees a whole stored tensor next to its place: when ranks
hold parts, a place says which part it is, and that line cuts it.
"""

import logging
import re
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from tqdm import tqdm

from engine.config import ModelConfig
from engine.model.checkpoint import Checkpoint, CheckpointError, StoredTensor
from engine.model.qwen3_5 import Qwen3_5
from engine.model.vision import VisionTower

_log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
TOWER = "visual."
OPTIONAL = {TOWER: "vision", "mtp.": "multi-token prediction"}
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
NUM_NAMED = 6  # names in an error message before "and 12 more"

_FUSED_EXPERTS = re.compile(r"mlp\.experts\.(gate_up|down)_proj\.weight$")
_SINGLE_EXPERT = re.compile(r"layers\.(\d+)\.mlp\.experts\.\d+\.")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: Qwen3_5
    tower: VisionTower | None
    num_parameters: int  # of both
    weight_bytes: int  # in memory, which may differ from the files'
    load_s: float


def load_model(
    model_dir: Path,
    config: ModelConfig,
    dtype: str = "auto",
    *,
    device: torch.device | None = None,
    language_model_only: bool = False,
    shows_progress: bool = True,
) -> LoadedModel:
    """Build the model in `dtype` ("auto": the checkpoint's) and fill it from `model_dir`.

    The vision tower is built where `config` describes it and `model_dir` holds any of it.

    Raises `CheckpointError`, before the first weight is read where headers can tell.
    """
    started_s = time.monotonic()
    checkpoint = Checkpoint(model_dir)
    wanted = {TOWER} if config.vision is not None and not language_model_only else set[str]()
    stored = _by_canonical_name(checkpoint.tensors, wanted)
    config = _settle_head(checkpoint, stored, config)
    torch_dtype, device = resolve_dtype(dtype, config), device or torch.device("cpu")
    model = Qwen3_5(config, torch_dtype, device)
    places = model.places(_layers_with_single_experts(stored))
    tower = None
    if config.vision is not None and any(name.startswith(TOWER) for name in stored):
        tower = VisionTower(config.vision, torch_dtype, device, text_hidden_size=config.hidden_size)
        places |= {TOWER + name: place for name, place in tower.places().items()}
    _check_fit(places, stored)
    _fill(places, checkpoint, {stored[name].name: name for name in places}, shows_progress)
    return LoadedModel(
        model=model,
        tower=tower,
        num_parameters=sum(place.numel() for place in places.values()),
        weight_bytes=sum(place.numel() * place.element_size() for place in places.values()),
        load_s=time.monotonic() - started_s,
    )


def resolve_dtype(dtype: str, config: ModelConfig) -> torch.dtype:
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise ValueError(f"dtype {name} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _by_canonical_name(
    tensors: Mapping[str, StoredTensor], wanted: Set[str]
) -> dict[str, StoredTensor]:
    """Key the tensors without prefix: `layers.0...`, `norm.weight`, `lm_head...`, `visual...`.

    Drops, and logs, those of the `OPTIONAL` parts that are not `wanted`.
    """
    stored: dict[str, StoredTensor] = {}
    unwanted = {start: what for start, what in OPTIONAL.items() if start not in wanted}
    skipped: dict[str, list[StoredTensor]] = {what: [] for what in unwanted.values()}
    for tensor in tensors.values():
        prefix = next(filter(tensor.name.startswith, PREFIXES), "")
        name = tensor.name.removeprefix(prefix)
        part = next((unwanted[start] for start in unwanted if name.startswith(start)), None)
        if part is not None:
            skipped[part].append(tensor)
            continue
        if _FUSED_EXPERTS.search(name):
            name = name.removesuffix(".weight")
        if name in stored:
            raise CheckpointError(f"{tensor.name} and {stored[name].name} are the same tensor")
        stored[name] = tensor
    counts = [
        f"{len(parts)} {what} tensors ({sum(part.num_bytes for part in parts):,} bytes)"
        for what, parts in skipped.items()
        if parts
    ]
    if counts:
        _log.info("not loaded, because not served: %s", " and ".join(counts))
    return stored


def _settle_head(
    checkpoint: Checkpoint, stored: dict[str, StoredTensor], config: ModelConfig
) -> ModelConfig:
    """Where a tied checkpoint stores a head all the same, forget the copy; keep one that differs.

    A copy that is not one means that the configuration is wrong about tying; the file is right.
    """
    if not config.tie_word_embeddings or HEAD not in stored or EMBEDDING not in stored:
        return config
    head = stored[HEAD]
    if head.shape == stored[EMBEDDING].shape:
        names = {head.name, stored[EMBEDDING].name}
        one, other = (tensor for _, tensor in checkpoint.read(names))
        if torch.equal(one, other):
            del stored[HEAD]
            return config
    _log.warning(
        "config.json ties the word embeddings, but %s differs from them and is used", head.name
    )
    return msgspec.structs.replace(config, tie_word_embeddings=False)


def _layers_with_single_experts(stored: Mapping[str, StoredTensor]) -> frozenset[int]:
    """Layers that store their experts one by one instead of fused."""
    matches = map(_SINGLE_EXPERT.match, stored)
    return frozenset(int(match[1]) for match in matches if match)


def _check_fit(places: Mapping[str, torch.Tensor], stored: Mapping[str, StoredTensor]) -> None:
    """Compare what is needed with what is there, and say all that is wrong at once."""
    missing = [name for name in places if name not in stored]
    unexpected = [tensor.name for name, tensor in stored.items() if name not in places]
    misshapen = [
        f"{stored[name].name} (expected {list(place.shape)}, found {list(stored[name].shape)})"
        for name, place in places.items()
        if name in stored and stored[name].shape != tuple(place.shape)
    ]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (
            ("missing", missing),
            ("misshapen", misshapen),
            ("unexpected", unexpected),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"the weights do not fit config.json; {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def _fill(
    places: Mapping[str, torch.Tensor],
    checkpoint: Checkpoint,
    place_of: Mapping[str, str],
    shows_progress: bool,
) -> None:
    total = sum(checkpoint.tensors[name].num_bytes for name in place_of)
    with tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=not shows_progress
    ) as bar:
        for name, tensor in checkpoint.read(set(place_of)):
            places[place_of[name]].copy_(tensor)
            bar.update(tensor.nbytes)
