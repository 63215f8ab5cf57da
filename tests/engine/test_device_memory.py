"""A GPU's budget by arithmetic, on the sizes of Qwen3.5-35B-A3B in bf16."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from engine.config import EngineConfig, MemoryPlan, ModelConfig
from engine.device_memory import (
    CONTEXT_BYTES,
    FEATURE_CACHE_BYTES,
    activation_bytes,
    cache_budget,
    picture_bytes,
)
from engine.memory_plan import GPU_DEFAULTS, plan_memory
from engine.vision_config import VisionConfig
from tests.engine.test_memory_plan import GIB, MODEL, WINDOW, used_bytes
from tests.engine.test_vision_config import RELEASED_TOWER

WEIGHTS = 35_107_000_000 * 2


def config_of(**wishes: Any) -> EngineConfig:
    return EngineConfig(model_dir="x", num_real_tokens=248_077, **wishes)


def budget_of(total_bytes: int, free_bytes: int | None = None, **wishes: Any) -> int:
    return cache_budget(
        MODEL,
        config_of(**wishes),
        defaults=GPU_DEFAULTS,
        dtype_bytes=2,
        weight_bytes=WEIGHTS,
        total_bytes=total_bytes,
        free_bytes=total_bytes - WEIGHTS if free_bytes is None else free_bytes,
    )


def activations_of(**wishes: Any) -> int:
    return activation_bytes(MODEL, config_of(**wishes), defaults=GPU_DEFAULTS, dtype_bytes=2)


def plan(total_bytes: int, **wishes: Any) -> MemoryPlan:
    return plan_memory(
        MODEL,
        config_of(**wishes),
        dtype_bytes=2,
        available_bytes=budget_of(total_bytes, **wishes),
        defaults=GPU_DEFAULTS,
    )


def test_the_whole_share_is_spoken_for() -> None:
    total = 80 * GIB
    spoken = budget_of(total) + activations_of() + CONTEXT_BYTES + WEIGHTS
    assert spoken == int(0.9 * total)
    assert budget_of(total, memory_utilization=0.95) - budget_of(total) == pytest.approx(
        0.05 * total, abs=2
    )


def test_what_others_hold_is_not_promised() -> None:
    free = 5 * GIB
    assert budget_of(140 * GIB, free) == free - activations_of()
    assert budget_of(140 * GIB, GIB) == 0


def test_activations_grow_with_the_step_and_the_batch() -> None:
    small, large = activations_of(max_step_tokens=1024), activations_of(max_step_tokens=8192)
    assert small < activations_of() < large < 5 * GIB
    assert activations_of(max_num_seqs=16) < activations_of()
    # What a layer of the largest step surely holds at once: its projections, in and out.
    per_token = 2 * (2 * 2048 + 12_352 + 4096) + 2 * 8 * (1024 + 512 + 2048)
    assert large - small > 7168 * per_token


def test_a_tower_takes_room_for_the_largest_picture() -> None:
    with_tower = msgspec.structs.replace(
        MODEL,
        vision=VisionConfig.from_raw({"vision_config": RELEASED_TOWER}, text_hidden_size=2048),
    )
    assert with_tower.vision is not None

    def budget(model: ModelConfig) -> int:
        return cache_budget(
            model,
            config_of(),
            defaults=GPU_DEFAULTS,
            dtype_bytes=2,
            weight_bytes=WEIGHTS,
            total_bytes=80 * GIB,
            free_bytes=80 * GIB - WEIGHTS,
        )

    reserved = picture_bytes(with_tower.vision, 2048, dtype_bytes=2)
    assert budget(MODEL) - budget(with_tower) == reserved
    # What surely lives at once: the residual stream, queries, keys and values, two MLP rows, the
    # features and the cache of others.
    patches = 16_777_216 // 256
    least = 2 * 4 * 1152 * patches + 2 * 2 * 4304 * 4096 + 2 * 2048 * patches // 4
    assert least + FEATURE_CACHE_BYTES < reserved < 2 * GIB
    in_fp32 = picture_bytes(with_tower.vision, 2048, dtype_bytes=4)
    assert reserved < in_fp32 < 2 * reserved


def test_an_80_gib_gpu_holds_the_model_and_long_sequences() -> None:
    memory = plan(80 * GIB)
    assert memory.max_num_seqs >= 32
    assert memory.max_model_len >= 32_768
    assert memory.max_step_tokens == 2048
    assert used_bytes(memory) <= budget_of(80 * GIB)


def test_a_141_gb_gpu_holds_the_whole_window_and_all_sequences() -> None:
    memory = plan(140 * GIB)
    assert (memory.max_num_seqs, memory.max_model_len) == (128, WINDOW)
    assert memory.num_kv_tokens > 1_800_000
    assert memory.num_saved_slots == 250  # twice the sequences
    assert memory.warnings == ()


def test_a_gpu_that_is_too_small_says_so() -> None:
    with pytest.raises(ValueError, match=r"0\.0 MiB for the caches is too little"):
        plan(72 * GIB)


def test_no_torch_is_loaded() -> None:
    code = "import sys, engine.device_memory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
