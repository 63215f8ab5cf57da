"""`deltaserve plan`: what fits into memory, by the engine's own arithmetic; nothing is loaded.

Weights are counted from the headers of the checkpoint's files, caches planned by `plan_memory`.
The answer is the one a start would come to with the same flags and the same free memory.
"""

from math import prod
from pathlib import Path

import msgspec
from safetensors import safe_open

from engine import EngineConfig, MemoryPlan, ModelConfig, available_bytes, plan_memory

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
TOWER = "visual."  # the part of a checkpoint that sees
NOT_LOADED = "mtp."


def describe_plan(engine_config: EngineConfig, memory_bytes: int | None) -> str:
    """The answer as text; `memory_bytes` None is what is free now. Raises ValueError."""
    model_dir = Path(engine_config.model_dir)
    model = ModelConfig.from_dir(model_dir)
    dtype = model.dtype if engine_config.dtype == "auto" else engine_config.dtype
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(DTYPE_BYTES)}")
    if engine_config.language_model_only:
        model = msgspec.structs.replace(model, vision=None)
    num_parameters = count_parameters(model_dir, with_tower=model.vision is not None)
    weight_bytes = num_parameters * DTYPE_BYTES[dtype]
    memory_bytes = available_bytes() if memory_bytes is None else memory_bytes
    lines = [
        f"model        {model.architecture}: {model.num_linear_layers} DeltaNet and "
        f"{model.num_full_layers} attention layers",
        f"weights      {_human(weight_bytes)} "
        f"({num_parameters / 1e6:,.1f} M parameters in {dtype})",
        f"memory       {_human(memory_bytes)}",
    ]
    if weight_bytes >= memory_bytes:
        raise ValueError(
            f"the weights take {_human(weight_bytes)}, but there are {_human(memory_bytes)}"
        )
    plan = plan_memory(
        model,
        engine_config,
        dtype_bytes=DTYPE_BYTES[dtype],
        available_bytes=memory_bytes - weight_bytes,
    )
    return "\n".join(lines + _describe_caches(plan))


def count_parameters(model_dir: Path, *, with_tower: bool) -> int:
    """Elements of the tensors that are loaded, from the headers of the files."""
    left_out = (NOT_LOADED,) if with_tower else (NOT_LOADED, TOWER)
    total = 0
    for path in sorted(model_dir.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                if not any(part in name for part in left_out):
                    total += prod(tensors.get_slice(name).get_shape())
    return total


def _describe_caches(plan: MemoryPlan) -> list[str]:
    page_tokens = plan.num_kv_tokens // plan.num_pages
    page_bytes = (plan.num_pages + 1) * plan.page_bytes
    slot_bytes = (plan.num_slots + 1) * plan.slot_bytes
    lines = [
        f"one page     {_human(plan.page_bytes)} of KV for {page_tokens} tokens",
        f"one state    {_human(plan.slot_bytes)}, as much as "
        f"{plan.slot_bytes * page_tokens // plan.page_bytes:,} tokens of KV",
        f"caches       {_human(page_bytes + slot_bytes)}: {plan.num_pages:,} pages "
        f"({_human(page_bytes)}) and {plan.num_slots:,} states ({_human(slot_bytes)})",
        f"longest      {plan.max_model_len:,} tokens, prompt and answer together",
        "",
        "sequences at once   tokens each",
    ]
    for count in _counts(plan.max_num_seqs):
        length = min(plan.num_pages // count * page_tokens, plan.max_model_len)
        lines.append(f"{count:>17}   {length:>11,}")
    return lines + [f"note: {warning}" for warning in plan.warnings]


def _counts(most: int) -> list[int]:
    """1, 2, 4 .. below `most`, and `most`."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return [*powers, most]


def _human(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:,.2f} GiB"
