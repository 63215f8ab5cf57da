"""Norms and rotation against fp64 and transformers' own functions."""

from types import ModuleType

import pytest
import torch

import kernels.norm_rope
from kernels.norm_rope import reference
from tests.kernels.closeness import assert_close

EPS = 1e-6
ROWS = (0, 1, 2, 7, 63, 64, 65, 100)


@pytest.fixture(params=[reference, kernels.norm_rope], ids=["reference", "cpu"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * (1 + weight.double())


@pytest.mark.parametrize("D", [512, 40, 33])
@pytest.mark.parametrize("T", ROWS)
def test_rms_norm(op: ModuleType, T: int, D: int, dtype: torch.dtype) -> None:
    x_TD = (torch.randn(T, D + 3) * 3).to(dtype)[:, :D]
    weight_D = torch.randn(D).to(dtype)
    assert_close(op.rms_norm(x_TD, weight_D, EPS), normed(x_TD, weight_D), dtype)


@pytest.mark.parametrize("D", [512, 40, 33])
@pytest.mark.parametrize("T", ROWS)
def test_add_rms_norm(op: ModuleType, T: int, D: int, dtype: torch.dtype) -> None:
    x_TD, residual_TD = torch.randn(T, D).to(dtype), torch.randn(T, D).to(dtype)
    weight_D = torch.randn(D).to(dtype)
    before = residual_TD.clone()
    y_TD, sum_TD = op.add_rms_norm(x_TD, residual_TD, weight_D, EPS)
    assert torch.equal(sum_TD, before + x_TD)  # one rounding: nothing to differ in
    assert torch.equal(residual_TD, before)
    assert_close(y_TD, normed(before + x_TD, weight_D), dtype)


class Heads:
    """Projections of T rows as views of one fused tensor, and pages to write to."""

    H, G, R, page_tokens = 6, 2, 16, 64

    def __init__(self, T: int, E: int, dtype: torch.dtype) -> None:
        H, G = self.H, self.G
        self.E = E
        fused = torch.randn(T, (2 * H + 2 * G) * E).to(dtype)
        qg, k, v = fused.split((2 * H * E, G * E, G * E), dim=-1)
        self.qg_TH2E = qg.unflatten(-1, (H, 2 * E))
        self.k_TGE, self.v_TGE = k.unflatten(-1, (G, E)), v.unflatten(-1, (G, E))
        self.weights = (torch.randn(E).to(dtype), torch.randn(E).to(dtype))
        angle = (torch.rand(T, self.R // 2) * 1e4).repeat(1, 2)
        self.cos_TR, self.sin_TR = angle.cos(), angle.sin()
        self.kv_P2GOE = torch.randn(5, 2, G, self.page_tokens, E).to(dtype)
        self.location_T = torch.randperm(4 * self.page_tokens)[:T] + self.page_tokens

    def run(self, op: ModuleType, rows: slice, kv_P2GOE: torch.Tensor) -> torch.Tensor:
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

    def rotated(self, x_THE: torch.Tensor) -> torch.Tensor:
        out = x_THE.clone()
        half = self.R // 2
        for i in range(half):
            cos, sin = self.cos_TR[:, None, i].double(), self.sin_TR[:, None, i].double()
            low, high = x_THE[..., i], x_THE[..., i + half]
            out[..., i] = low * cos - high * sin
            out[..., i + half] = high * cos + low * sin
        return out


@pytest.mark.parametrize("E", [64, 20])
@pytest.mark.parametrize("T", ROWS)
def test_qk_norm_rope_write(op: ModuleType, T: int, E: int, dtype: torch.dtype) -> None:
    heads = Heads(T, E, dtype)
    pages = heads.kv_P2GOE.clone()
    q_THE = heads.run(op, slice(None), pages)
    assert q_THE.dtype == dtype
    q_weight, k_weight = heads.weights
    assert_close(q_THE, heads.rotated(normed(heads.qg_TH2E[..., :E], q_weight)), dtype)
    page_T, offset_T = heads.location_T // 64, heads.location_T % 64
    written_k, written_v = pages[page_T, 0, :, offset_T], pages[page_T, 1, :, offset_T]
    assert_close(written_k, heads.rotated(normed(heads.k_TGE, k_weight)), dtype)
    assert torch.equal(written_v, heads.v_TGE)
    untouched = heads.kv_P2GOE.clone()
    untouched[page_T, 0, :, offset_T], untouched[page_T, 1, :, offset_T] = written_k, written_v
    assert torch.equal(pages, untouched)


def test_padding_rows_share_the_scratch_page(op: ModuleType, dtype: torch.dtype) -> None:
    heads = Heads(7, 64, dtype)
    alone = heads.kv_P2GOE.clone()
    q_alone = heads.run(op, slice(0, 4), alone)
    heads.location_T[4:] = 0
    q_THE = heads.run(op, slice(None), heads.kv_P2GOE)
    assert torch.equal(q_THE[:4], q_alone)
    assert torch.equal(heads.kv_P2GOE[1:], alone[1:])


def test_a_row_has_the_same_bits_alone_and_in_a_crowd(op: ModuleType, dtype: torch.dtype) -> None:
    heads = Heads(100, 64, dtype)
    x_TD, weight_D = torch.randn(100, 40).to(dtype), torch.randn(40).to(dtype)
    normed_TD = op.rms_norm(x_TD, weight_D, EPS)
    pages = heads.kv_P2GOE.clone()
    q_THE = heads.run(op, slice(None), pages)
    for rows in (1, 2, 7, 8, 9, 63, 64, 65):
        few = slice(100 - rows, None)
        assert torch.equal(op.rms_norm(x_TD[few], weight_D, EPS), normed_TD[few])
        assert torch.equal(op.add_rms_norm(x_TD[few] * 0, x_TD[few], weight_D, EPS)[0],
                           normed_TD[few])  # fmt: skip
        again = pages.clone()
        assert torch.equal(heads.run(op, few, again), q_THE[few])
        assert torch.equal(again, pages)


def test_transformers_agrees(op: ModuleType) -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_5_moe.modeling_qwen3_5_moe")
    heads = Heads(9, 64, torch.float32)
    norms = []
    for weight in heads.weights:
        norm = modeling.Qwen3_5MoeRMSNorm(64, EPS)
        norm.weight.data.copy_(weight)
        norms.append(norm)
    with torch.no_grad():
        q, k = norms[0](heads.qg_TH2E[..., :64]), norms[1](heads.k_TGE)
    q, k = modeling.apply_rotary_pos_emb(q, k, heads.cos_TR, heads.sin_TR)
    pages = heads.kv_P2GOE
    q_THE = heads.run(op, slice(None), pages)
    assert_close(q_THE, q, torch.float32)
    assert_close(pages[heads.location_T // 64, 0, :, heads.location_T % 64], k, torch.float32)
