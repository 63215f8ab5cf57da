"""The only big allocations: the bytes behind pages and slots, taken once at start.

On a CPU each tensor is an anonymous mapping of its own. The kernel hands out its pages when they
are first written, so a server whose traffic needs little stays small, and they read as zero until
then: nobody ever meets a NaN left behind by another program.
"""

import mmap
from math import prod

import torch

from engine.config import MemoryPlan, ModelConfig
from engine.model.inputs import Caches
from engine.plan import PAGE_TOKENS


def allocate_caches(
    model: ModelConfig,
    plan: MemoryPlan,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Caches:
    """Zeroed caches with the scratch page and slot on top of what `plan` counts.

    Slots are scratch, then those of running sequences, then those of saved states. K, V and the
    conv columns are kept in `dtype`, that of the activations; the state is fp32.
    """
    num_pages, num_slots = plan.num_pages + 1, 1 + plan.num_slots + plan.num_saved_slots
    page = (num_pages, 2, model.num_key_value_heads, PAGE_TOKENS, model.head_dim)
    conv = (num_slots, model.conv_dim, model.linear_conv_kernel_dim - 1)
    state = (
        num_slots,
        model.linear_num_value_heads,
        model.linear_key_head_dim,
        model.linear_value_head_dim,
    )
    linear = range(model.num_linear_layers)
    return Caches(
        kv_LP2GOE=tuple(_zeros(page, dtype, device) for _ in range(model.num_full_layers)),
        conv_LPCX=tuple(_zeros(conv, dtype, device) for _ in linear),
        state_LPNKV=tuple(_zeros(state, torch.float32, device) for _ in linear),
    )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None) -> torch.Tensor:
    if device is not None and device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, prod(shape) * dtype.itemsize)  # lives as long as the tensor
    return torch.frombuffer(memory, dtype=dtype).view(shape)
