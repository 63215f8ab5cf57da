"""bf16 without a GPU: that kernels keep the tolerances to which a GPU's tests hold them.

One case of each operation, on sizes that no tile fits. Where there is a GPU, it runs them all.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.kernels.triton import (
    test_fused_moe,
    test_gated_delta,
    test_linear,
    test_norm_rope,
    test_paged_attention,
)
from tests.kernels.triton.interpreted_bf16 import rounded, widened

BF16 = torch.bfloat16
DELTA_SHAPE = "two heads each"


def moe(T: int, device: torch.device) -> None:
    weights = test_fused_moe.make_weights(test_fused_moe.SIZES["odd"], BF16, device)
    test_fused_moe.test_triton_means_the_reference(T, True, weights)


CASES: dict[str, Callable[[torch.device], None]] = {
    **{
        name: lambda device, name=name: test_linear.test_triton_means_the_reference(
            name, 20, 40, 33, BF16, device
        )
        for name in test_linear.NAMES
    },
    "linear in parts": lambda device: test_linear.test_depth_in_parts("linear", 1, BF16, device),
    "experts of few": lambda device: moe(5, device),
    "experts of many": lambda device: moe(20, device),
    "delta decode": lambda device: test_gated_delta.test_decode(device, DELTA_SHAPE, 4, BF16),
    "delta prefill": lambda device: test_gated_delta.test_prefill(device, DELTA_SHAPE, BF16),
    "attention decode": lambda device: test_paged_attention.test_decode(
        test_paged_attention.SHAPES["odd"], BF16, device
    ),
    "attention window": lambda device: test_paged_attention.test_window(2, BF16, device),
    "attention prefill": lambda device: test_paged_attention.test_prefill(
        test_paged_attention.SHAPES["odd"], BF16, device
    ),
    "norms": lambda device: test_norm_rope.test_norms(17, 40, BF16, device),
    "heads": lambda device: test_norm_rope.test_heads(9, 20, 20, BF16, device),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_keep_a_gpus_tolerance(name: str, device: torch.device) -> None:
    CASES[name](device)


def test_numbers_round_as_torch_rounds_them() -> None:
    values = torch.cat((torch.randn(4096), torch.tensor([torch.nan, torch.inf, -0.0, 3.4e38])))
    values[:8] = torch.tensor([1.0, 1.00390625, 1.01171875, 1e-40, -1e-40, 0.0, -torch.inf, 65280])
    bits = rounded(values.numpy())
    expected = values.bfloat16()
    found = torch.from_numpy(widened(bits).view(np.float32))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0, equal_nan=True)
