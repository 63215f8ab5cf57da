"""The budget's arithmetic, on the sizes of Qwen3.5-35B-A3B."""

import subprocess
import sys
from math import ceil
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig, MemoryPlan, ModelConfig
from engine.launches.shapes import MOE as MODEL
from engine.memory_plan import DEFAULT_CACHE_BYTES, DEFAULT_NUM_SEQS, plan_memory

GIB, MIB = 1 << 30, 1 << 20
PAGE, STATE, CONV = 1_310_720, 62_914_560, 1_474_560
SLOT = STATE + CONV
WINDOW = 262_144


def plan(available_bytes: int, *, model: ModelConfig = MODEL, **wishes: Any) -> MemoryPlan:
    config = EngineConfig(model_dir="x", num_real_tokens=248_077, **wishes)
    return plan_memory(model, config, dtype_bytes=2, available_bytes=available_bytes)


def used_bytes(memory: MemoryPlan) -> int:
    """With the scratch page and slot."""
    num_slots = memory.num_slots + memory.num_saved_slots + 1
    return (memory.num_pages + 1) * memory.page_bytes + num_slots * memory.slot_bytes


def test_a_state_is_exactly_48_pages_of_kv() -> None:
    memory = plan(100 * GIB)
    assert memory.page_bytes == PAGE == 64 * 20 * 1024
    assert memory.slot_bytes == SLOT
    assert STATE == 48 * PAGE


def test_defaults_with_room_to_spare() -> None:
    memory = plan(200 * GIB)
    assert (memory.max_num_seqs, memory.num_slots) == (DEFAULT_NUM_SEQS, DEFAULT_NUM_SEQS)
    assert memory.max_model_len == WINDOW
    assert memory.max_step_tokens == 512
    assert memory.warnings == ()
    # A third of what 33 states and 4,097 pages leave of 8 GiB is 5 saved states; the rest is pages.
    assert (8 * GIB - 33 * SLOT - (WINDOW // 64 + 1) * PAGE) // 3 // SLOT == 5
    assert memory.num_saved_slots == 5
    assert memory.num_pages == (8 * GIB - 38 * SLOT) // PAGE - 1 == 4685
    assert used_bytes(memory) <= DEFAULT_CACHE_BYTES < used_bytes(memory) + PAGE


def test_the_default_cap_never_shortens_the_window() -> None:
    memory = plan(200 * GIB, max_num_seqs=100)
    assert used_bytes(memory) == 101 * SLOT + (WINDOW // 64 + 1) * PAGE > DEFAULT_CACHE_BYTES
    assert (memory.max_num_seqs, memory.max_model_len) == (100, WINDOW)


def test_an_explicit_budget_is_spent_whole() -> None:
    memory = plan(200 * GIB, cache_bytes=100 * GIB)
    assert used_bytes(memory) <= 100 * GIB < used_bytes(memory) + PAGE


def test_pages_nobody_could_fill_are_not_taken() -> None:
    memory = plan(200 * GIB, cache_bytes=100 * GIB, max_num_seqs=3, max_model_len=1000)
    assert memory.num_pages == 3 * ceil(1000 / 64)
    assert memory.max_model_len == 1000


def test_sequences_give_way_first_then_the_window_then_the_last_sequences() -> None:
    six, three, small = plan(6 * GIB), plan(3 * GIB), plan(150 * MIB)
    assert (six.max_model_len, six.max_num_seqs) == (WINDOW, 5)
    assert [warning.split()[0] for warning in six.warnings] == ["max_num_seqs"]
    assert (three.max_model_len, three.max_num_seqs) == (125_760, 4)
    assert [warning.split()[0] for warning in three.warnings] == ["max_num_seqs", "max_model_len"]
    assert (small.max_model_len, small.max_num_seqs) == (512, 1)
    assert "125760 instead of 262144" in three.warnings[1]
    assert "4 instead of 32" in three.warnings[0]


def test_an_explicit_wish_makes_the_other_give_way() -> None:
    memory = plan(3 * GIB, max_num_seqs=40)
    assert memory.max_num_seqs == 40
    assert memory.max_model_len == 196 * 64
    assert [warning.split()[0] for warning in memory.warnings] == ["max_model_len"]
    memory = plan(3 * GIB, max_model_len=130_000)
    assert memory.max_model_len == 130_000
    assert memory.max_num_seqs == 2


@pytest.mark.parametrize(
    ("available_bytes", "wishes", "words"),
    [
        (3 * GIB, {"max_num_seqs": 64}, "max_num_seqs 64 does not fit"),
        (3 * GIB, {"max_model_len": WINDOW}, "max_model_len 262144 does not fit"),
        (
            3 * GIB,
            {"max_model_len": 60_000, "max_num_seqs": 32},
            "max_num_seqs 32 with max_model_len 60000 does not fit",
        ),
        (100 * GIB, {"max_model_len": WINDOW + 1}, "262144 the model was made for"),
        (100 * GIB, {"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        (100 * GIB, {"max_model_len": -5}, "max_model_len must be at least 1, not -5"),
        (100 * GIB, {"max_step_tokens": 0}, "max_step_tokens must be at least 1, not 0"),
        (100 * GIB, {"memory_utilization": 0.0}, "memory_utilization must lie in"),
        (100 * GIB, {"memory_utilization": float("nan")}, "memory_utilization must lie in"),
        (100 * GIB, {"cache_bytes": 101 * GIB}, "left after the weights"),
        (100 * GIB, {"cache_bytes": 0}, "too little: one sequence needs at least 125.3 MiB"),
        (100 * MIB, {}, "90.0 MiB for the caches is too little"),
        (0, {}, "0.0 MiB for the caches is too little"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    available_bytes: int, wishes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        plan(available_bytes, **wishes)
    assert words in str(error.value)


def test_the_least_budget_is_one_page_and_one_slot_beside_scratch() -> None:
    least = 2 * (PAGE + SLOT)
    memory = plan(100 * GIB, cache_bytes=least)
    assert (memory.num_pages, memory.num_slots, memory.max_model_len) == (1, 1, 64)
    with pytest.raises(ValueError, match="too little"):
        plan(100 * GIB, cache_bytes=least - 1)


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({}, 512),
        ({"max_step_tokens": 1024}, 1024),
        ({"max_step_tokens": 1000}, 1024),
        ({"max_step_tokens": 1}, 128),
        ({"max_step_tokens": 64, "max_num_seqs": 64}, 128),
        ({"max_step_tokens": 128, "max_num_seqs": 65}, 192),
        ({"max_num_seqs": 500}, 576),
    ],
)
def test_step_tokens_hold_all_decodes_and_a_chunk(wishes: dict[str, Any], expected: int) -> None:
    memory = plan(100 * GIB, **wishes)
    assert memory.max_step_tokens == expected
    asked = wishes.get("max_step_tokens", 512)
    assert bool(memory.warnings) == (expected != asked)


def test_yarn_stretches_the_window() -> None:
    model = msgspec.structs.replace(MODEL, yarn_factor=4.0)
    assert plan(200 * GIB, model=model).max_model_len == 4 * WINDOW


@given(
    st.integers(0, 300 * GIB),
    st.one_of(st.none(), st.integers(1, 600)),
    st.one_of(st.none(), st.integers(1, WINDOW)),
    st.one_of(st.none(), st.integers(1, 5000)),
    st.floats(0.01, 1),
)
@settings(deadline=None, max_examples=300)
def test_every_plan_is_sound(
    available_bytes: int,
    max_num_seqs: int | None,
    max_model_len: int | None,
    max_step_tokens: int | None,
    share: float,
) -> None:
    wishes = {
        "max_num_seqs": max_num_seqs,
        "max_model_len": max_model_len,
        "max_step_tokens": max_step_tokens,
        "memory_utilization": share,
    }
    try:
        memory = plan(available_bytes, **wishes)
    except ValueError:
        defaults_only = max_num_seqs is None and max_model_len is None
        assert not defaults_only or int(share * available_bytes) < 2 * (PAGE + SLOT)
        return
    assert used_bytes(memory) <= share * available_bytes
    assert memory.max_num_seqs == memory.num_slots >= 1
    assert memory.num_kv_tokens >= memory.max_model_len >= 1
    assert max_num_seqs in (None, memory.max_num_seqs)
    assert max_model_len in (None, memory.max_model_len)
    assert memory.max_step_tokens % 64 == 0
    assert memory.max_step_tokens >= 64 + memory.max_num_seqs
    assert memory.max_step_tokens >= (max_step_tokens or 512)


def test_no_torch_is_loaded() -> None:
    code = "import sys, engine.memory_plan, engine.host_memory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
