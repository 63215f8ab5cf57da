from pathlib import Path

import pytest
import torch

from engine.config import MemoryPlan
from engine.runner.tensors import allocate_caches
from tests.engine.runner.fake_model import tiny_config


def plan(num_pages: int, num_slots: int) -> MemoryPlan:
    return MemoryPlan(
        num_pages=num_pages,
        num_slots=num_slots,
        page_bytes=0,
        slot_bytes=0,
        max_model_len=0,
        max_num_seqs=0,
        max_step_tokens=0,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shapes_dtypes_and_zeros(dtype: torch.dtype) -> None:
    caches = allocate_caches(tiny_config(9), plan(5, 3), dtype=dtype)
    (kv,), (conv,), (state,) = caches.kv_LP2GOE, caches.conv_LPCX, caches.state_LPNKV
    assert (kv.shape, kv.dtype) == ((6, 2, 1, 64, 1), dtype)
    assert (conv.shape, conv.dtype) == ((4, 3, 3), dtype)
    assert (state.shape, state.dtype) == ((4, 1, 1, 1), torch.float32)
    for tensor in (kv, conv, state):
        assert tensor.count_nonzero() == 0
        tensor[-1] = 1
        assert tensor.count_nonzero() == tensor[-1].numel()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_taken_when_it_is_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    caches = allocate_caches(tiny_config(9), plan(2_000_000, 1), dtype=torch.float32)
    (kv,) = caches.kv_LP2GOE
    assert kv.numel() * kv.itemsize > 1_000_000_000
    assert resident_bytes() - before < 50_000_000
    kv[:100_000] = 1.0
    assert resident_bytes() - before > 50_000_000
