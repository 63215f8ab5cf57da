"""The norms and the rotation in Triton against their reference, and a row against itself."""

import pytest
import torch

from kernels import norm_rope
from kernels.norm_rope import reference
from tests.kernels.closeness import TOLERANCE

EPS = 1e-6
ROWS = (0, 1, 65)
TOLERANCES = TOLERANCE | {torch.float16: 2.0**-10}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert not actual.isnan().any()
    largest = max(expected.double().abs().max().item(), 1e-3) if expected.numel() else 1.0
    error = (actual.double() - expected.double()).abs()
    assert (error <= TOLERANCES[actual.dtype] * largest).all()


@pytest.mark.parametrize("D", [64, 40])
@pytest.mark.parametrize("T", ROWS)
def test_norms(T: int, D: int, dtype: torch.dtype, device: torch.device) -> None:
    x_TD = (torch.randn(T, D + 8, device=device) * 3).to(dtype)[:, :D]
    residual_TD = torch.randn(D, T, device=device).to(dtype).T
    weight_D = torch.randn(D, device=device).to(dtype)
    before = residual_TD.clone()
    assert_close(norm_rope.rms_norm(x_TD, weight_D, EPS), reference.rms_norm(x_TD, weight_D, EPS))
    y_TD, sum_TD = norm_rope.add_rms_norm(x_TD, residual_TD, weight_D, EPS)
    expected_TD, expected_sum_TD = reference.add_rms_norm(x_TD, residual_TD, weight_D, EPS)
    assert torch.equal(sum_TD, expected_sum_TD)
    assert torch.equal(residual_TD, before)
    assert_close(y_TD, expected_TD)


class Heads:
    """Projections of T rows as views of one fused tensor, and pages to write to."""

    H, G, page_tokens = 3, 2, 16

    def __init__(self, T: int, E: int, R: int, dtype: torch.dtype, device: torch.device) -> None:
        H, G = self.H, self.G
        fused = torch.randn(T, (2 * H + 2 * G) * E, device=device).to(dtype)
        qg, k, v = fused.split((2 * H * E, G * E, G * E), dim=-1)
        self.qg_TH2E = qg.unflatten(-1, (H, 2 * E))
        self.k_TGE, self.v_TGE = k.unflatten(-1, (G, E)), v.unflatten(-1, (G, E))
        self.weights = [torch.randn(E, device=device).to(dtype) for _ in range(2)]
        angle = (torch.rand(T, R // 2, device=device) * 1e4).repeat(1, 2)
        self.cos_TR, self.sin_TR = angle.cos(), angle.sin()
        self.kv_P2GOE = torch.randn(8, 2, G, self.page_tokens, E, device=device).to(dtype)
        self.location_T = torch.randperm(7 * self.page_tokens, device=device)[:T] + self.page_tokens

    def run(self, op: object, rows: slice, kv_P2GOE: torch.Tensor) -> torch.Tensor:
        return op.qk_norm_rope_write(
            self.qg_TH2E[rows],
            self.k_TGE[rows],
            self.v_TGE[rows],
            *self.weights,
            self.cos_TR[rows],
            self.sin_TR[rows],
            kv_P2GOE=kv_P2GOE,
            location_T=self.location_T[rows],
            eps=EPS,
        )


@pytest.mark.parametrize(("T", "E", "R"), [(0, 32, 8), (1, 32, 8), (17, 32, 8), (9, 20, 20)])
def test_heads(T: int, E: int, R: int, dtype: torch.dtype, device: torch.device) -> None:
    heads = Heads(T, E, R, dtype, device)
    pages, expected_pages = heads.kv_P2GOE.clone(), heads.kv_P2GOE.clone()
    q_THE = heads.run(norm_rope, slice(None), pages)
    assert q_THE.is_contiguous()
    assert_close(q_THE, heads.run(reference, slice(None), expected_pages))
    page_T, offset_T = heads.location_T // 16, heads.location_T % 16
    assert_close(pages[page_T, 0, :, offset_T], expected_pages[page_T, 0, :, offset_T])
    # What is not a key of these rows is equal to the bit: values, and all that was there before.
    pages[page_T, 0, :, offset_T] = expected_pages[page_T, 0, :, offset_T]
    assert torch.equal(pages, expected_pages)


def test_padding_rows_share_the_scratch_page(dtype: torch.dtype, device: torch.device) -> None:
    heads = Heads(7, 32, 8, dtype, device)
    alone = heads.kv_P2GOE.clone()
    q_alone = heads.run(norm_rope, slice(0, 4), alone)
    heads.location_T[4:] = 0
    q_THE = heads.run(norm_rope, slice(None), heads.kv_P2GOE)
    assert torch.equal(q_THE[:4], q_alone)
    assert torch.equal(heads.kv_P2GOE[1:], alone[1:])


def test_a_row_has_the_same_bits_alone_and_in_a_crowd(
    dtype: torch.dtype, device: torch.device
) -> None:
    heads = Heads(9, 32, 8, dtype, device)
    x_TD = torch.randn(9, 40, device=device).to(dtype)
    weight_D = torch.randn(40, device=device).to(dtype)
    y_TD = norm_rope.rms_norm(x_TD, weight_D, EPS)
    sum_normed_TD, _ = norm_rope.add_rms_norm(x_TD, x_TD, weight_D, EPS)
    pages = heads.kv_P2GOE.clone()
    q_THE = heads.run(norm_rope, slice(None), pages)
    for rows in (1, 2, 8):
        few = slice(9 - rows, None)
        assert torch.equal(norm_rope.rms_norm(x_TD[few], weight_D, EPS), y_TD[few])
        again_TD, _ = norm_rope.add_rms_norm(x_TD[few], x_TD[few], weight_D, EPS)
        assert torch.equal(again_TD, sum_normed_TD[few])
        again = pages.clone()
        assert torch.equal(heads.run(norm_rope, few, again), q_THE[few])
        assert torch.equal(again, pages)
