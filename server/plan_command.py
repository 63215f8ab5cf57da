"""`deltaserve plan`: what fits into memory, by the engine's own arithmetic; nothing is loaded.

Weights are counted from the headers of the checkpoint's files, caches planned by `plan_memory`.
The answer is the one a start would come to with the same flags and the same free memory. On a GPU
that is all of its memory, as `--memory` or the driver's own program tell it: nobody else uses it.
"""

import shutil
import subprocess
from math import prod
from pathlib import Path

import msgspec
from safetensors import safe_open

from engine import (
    EngineConfig,
    MemoryPlan,
    ModelConfig,
    available_bytes,
    plan_gpu_memory,
    plan_memory,
)

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
    num_parameters, num_in_tower = count_parameters(model_dir)
    if model.vision is not None and num_in_tower and not engine_config.language_model_only:
        num_parameters += num_in_tower
    else:
        model = msgspec.structs.replace(model, vision=None)
    weight_bytes = num_parameters * DTYPE_BYTES[dtype]
    gpu_bytes = None if engine_config.device == "cpu" else gpu_memory_bytes()
    on_gpu = engine_config.device == "cuda" or gpu_bytes is not None
    if memory_bytes is None:
        memory_bytes = gpu_bytes if on_gpu else available_bytes()
    if memory_bytes is None:
        raise ValueError("no GPU is found here: say with --memory how much memory it has")
    lines = [
        f"model        {model.architecture}: {model.num_linear_layers} DeltaNet and "
        f"{model.num_full_layers} attention layers",
        f"weights      {_human(weight_bytes)} "
        f"({num_parameters / 1e6:,.1f} M parameters in {dtype})",
        f"memory       {_human(memory_bytes)} of {'a GPU' if on_gpu else 'this computer'}",
    ]
    if weight_bytes >= memory_bytes:
        raise ValueError(
            f"the weights take {_human(weight_bytes)}, but there are {_human(memory_bytes)}"
        )
    dtype_bytes, free_bytes = DTYPE_BYTES[dtype], memory_bytes - weight_bytes
    if on_gpu:
        plan = plan_gpu_memory(
            model,
            engine_config,
            dtype_bytes=dtype_bytes,
            weight_bytes=weight_bytes,
            total_bytes=memory_bytes,
            free_bytes=free_bytes,
        )
    else:
        plan = plan_memory(
            model, engine_config, dtype_bytes=dtype_bytes, available_bytes=free_bytes
        )
    return "\n".join(lines + _describe_caches(plan))


def gpu_memory_bytes() -> int | None:
    """Of the first GPU; None where there is none, or no driver to tell."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
        return int(answer.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def count_parameters(model_dir: Path) -> tuple[int, int]:
    """Elements of the language model's and of the tower's tensors, from the files' headers."""
    language_model = tower = 0
    for path in sorted(model_dir.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                size = prod(tensors.get_slice(name).get_shape())
                if TOWER in name:
                    tower += size
                elif NOT_LOADED not in name:
                    language_model += size
    return language_model, tower


def _describe_caches(plan: MemoryPlan) -> list[str]:
    page_tokens = plan.num_kv_tokens // plan.num_pages
    page_bytes = (plan.num_pages + 1) * plan.page_bytes
    slot_bytes = (plan.num_slots + 1) * plan.slot_bytes
    saved_bytes = plan.num_saved_slots * plan.slot_bytes
    lines = [
        f"one page     {_human(plan.page_bytes)} of KV for {page_tokens} tokens",
        f"one state    {_human(plan.slot_bytes)}, as much as "
        f"{plan.slot_bytes * page_tokens // plan.page_bytes:,} tokens of KV",
        f"caches       {_human(page_bytes + slot_bytes + saved_bytes)}: {plan.num_pages:,} pages "
        f"({_human(page_bytes)}), {plan.num_slots:,} states ({_human(slot_bytes)}) and "
        f"{plan.num_saved_slots:,} saved states ({_human(saved_bytes)})",
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
