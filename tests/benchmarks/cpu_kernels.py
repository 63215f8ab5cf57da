"""Medians of each CPU kernel against its plain-torch reference, and of a whole decode step.

    python -m tests.benchmarks.cpu_kernels [--dtype bfloat16] [--rows 1 8] [--threads 2]
                                           [--transformers]

The two sides run in turn (A B A B ...), so that other load on the machine hits both. The sizes are
those of a 40M-parameter model: 8 layers, 3 linear : 1 full, hidden 512, 32 experts top 8.
`--transformers` also times one decode step of transformers' model of the same sizes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import kernels.fused_moe
import kernels.gated_delta
import kernels.linear
import kernels.norm_rope
import kernels.paged_attention
from kernels import cpu_build
from kernels.fused_moe import MoeWeights
from kernels.gated_delta import DeltaNetWeights

D, LINEAR_LAYERS, FULL_LAYERS, VOCAB = 512, 6, 2, 4096
H, G, E, R = 8, 2, 64, 16
KEY_HEADS, N, K, V, W = 4, 8, 64, 64, 4
J, WIDTH, SHARED_WIDTH, TOP_K = 32, 128, 128, 8
C = 2 * KEY_HEADS * K + N * V
CONTEXT, PAGE = 200, 64
EPS = 1e-6


def matrix(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.randn(*shape) * shape[-1] ** -0.5).to(dtype)


def moe_weights(dtype: torch.dtype) -> MoeWeights:
    return MoeWeights(
        matrix(dtype, J, D),
        matrix(dtype, J, 2 * WIDTH, D),
        matrix(dtype, J, D, WIDTH),
        matrix(dtype, 2 * SHARED_WIDTH, D),
        matrix(dtype, D, SHARED_WIDTH),
        matrix(dtype, 1, D),
        TOP_K,
    )


def delta_weights(dtype: torch.dtype) -> DeltaNetWeights:
    return DeltaNetWeights(
        matrix(dtype, C, W), torch.zeros(N), torch.zeros(N), torch.ones(V), EPS, KEY_HEADS
    )


@dataclass
class Kernels:
    """One side of the comparison: where each function comes from."""

    linear_fp32: Callable[..., torch.Tensor]
    norm_linear: Callable[..., torch.Tensor]
    linear_add: Callable[..., torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    qk_norm_rope_write: Callable[..., torch.Tensor]
    attention_decode: Callable[..., torch.Tensor]
    gated_delta_decode: Callable[..., torch.Tensor]
    fused_moe_add: Callable[..., torch.Tensor]


FAST = Kernels(
    kernels.linear.linear_fp32,
    kernels.linear.norm_linear,
    kernels.linear.linear_add,
    kernels.norm_rope.rms_norm,
    kernels.norm_rope.qk_norm_rope_write,
    kernels.paged_attention.attention_decode,
    kernels.gated_delta.gated_delta_decode,
    kernels.fused_moe.fused_moe_add,
)
REFERENCE = Kernels(
    kernels.linear.reference.linear_fp32,
    kernels.linear.reference.norm_linear,
    kernels.linear.reference.linear_add,
    kernels.norm_rope.reference.rms_norm,
    kernels.norm_rope.reference.qk_norm_rope_write,
    kernels.paged_attention.reference.attention_decode,
    kernels.gated_delta.reference.gated_delta_decode,
    kernels.fused_moe.reference.fused_moe_add,
)


class Step:
    """A decode step of B rows with weights of its own in every layer, and its parts."""

    def __init__(self, B: int, dtype: torch.dtype) -> None:
        pages = -(-CONTEXT // PAGE)
        self.B = B
        self.x = torch.randn(B, D).to(dtype)
        self.norm = torch.zeros(D, dtype=dtype)
        self.head_norm = torch.zeros(E, dtype=dtype)
        self.cos = self.sin = torch.ones(B, R)
        self.slot = torch.arange(B) + 1
        self.page = (torch.arange(B * pages, dtype=torch.int32) + 1).view(B, pages)
        self.length = torch.full((B,), CONTEXT, dtype=torch.int32)
        self.location = self.page[:, -1].long() * PAGE + (CONTEXT - 1) % PAGE
        self.delta = [
            (
                matrix(dtype, C + N * V + 2 * N, D),
                delta_weights(dtype),
                torch.zeros(B + 1, C, W - 1, dtype=dtype),
                torch.zeros(B + 1, N, K, V),
                matrix(dtype, D, N * V),
            )
            for _ in range(LINEAR_LAYERS)
        ]
        self.attention = [
            (
                matrix(dtype, (2 * H + 2 * G) * E, D),
                torch.randn(B * pages + 1, 2, G, PAGE, E).to(dtype),
                matrix(dtype, D, H * E),
            )
            for _ in range(FULL_LAYERS)
        ]
        self.moe = [moe_weights(dtype) for _ in range(LINEAR_LAYERS + FULL_LAYERS)]
        self.head = matrix(dtype, VOCAB, D)

    def delta_mixer(self, k: Kernels, residual: torch.Tensor, layer: int) -> torch.Tensor:
        in_proj, weights, conv, state, out_proj = self.delta[layer]
        projected = k.norm_linear(residual, self.norm, EPS, in_proj)
        mixed, z, b, a = projected.split((C, N * V, N, N), dim=-1)
        o = k.gated_delta_decode(
            mixed,
            z.unflatten(-1, (N, V)),
            b,
            a,
            weights,
            conv_PCX=conv,
            state_PNKV=state,
            slot_B=self.slot,
        )
        return k.linear_add(o, out_proj, residual)

    def attention_mixer(self, k: Kernels, residual: torch.Tensor, layer: int) -> torch.Tensor:
        in_proj, kv, out_proj = self.attention[layer]
        projected = k.norm_linear(residual, self.norm, EPS, in_proj)
        qg, key, value = projected.split((2 * H * E, G * E, G * E), dim=-1)
        qg = qg.unflatten(-1, (H, 2 * E))
        q = k.qk_norm_rope_write(
            qg,
            key.unflatten(-1, (G, E)),
            value.unflatten(-1, (G, E)),
            self.head_norm,
            self.head_norm,
            self.cos,
            self.sin,
            kv_P2GOE=kv,
            location_T=self.location,
            eps=EPS,
        )
        o = k.attention_decode(
            q, qg, kv_P2GOE=kv, page_BM=self.page, length_B=self.length, scale=E**-0.5
        )
        return k.linear_add(o, out_proj, residual)

    def run(self, k: Kernels) -> torch.Tensor:
        residual = self.x
        for i, moe in enumerate(self.moe):
            if i % 4 == 3:
                residual = self.attention_mixer(k, residual, i // 4)
            else:
                residual = self.delta_mixer(k, residual, i - i // 4)
            residual = k.fused_moe_add(residual, self.norm, EPS, moe)
        return k.linear_fp32(k.rms_norm(residual, self.norm, EPS), self.head)

    def parts(self, k: Kernels) -> dict[str, Callable[[], object]]:
        """Each operation on its own, with its operands prepared outside the timed call."""
        in_proj, weights, conv, state, out_proj = self.delta[0]
        projected = FAST.norm_linear(self.x, self.norm, EPS, in_proj)
        mixed, z, b, a = projected.split((C, N * V, N, N), dim=-1)
        z = z.unflatten(-1, (N, V))
        qkv_proj, kv, _ = self.attention[0]
        projected = FAST.norm_linear(self.x, self.norm, EPS, qkv_proj)
        qg, key, value = projected.split((2 * H * E, G * E, G * E), dim=-1)
        qg = qg.unflatten(-1, (H, 2 * E))
        key, value = key.unflatten(-1, (G, E)), value.unflatten(-1, (G, E))
        q = torch.randn(self.B, H, E).to(self.x.dtype)
        o = torch.randn(self.B, N * V).to(self.x.dtype)
        return {
            "rms_norm": lambda: k.rms_norm(self.x, self.norm, EPS),
            "norm_linear (in_proj)": lambda: k.norm_linear(self.x, self.norm, EPS, in_proj),
            "linear_add (out_proj)": lambda: k.linear_add(o, out_proj, self.x),
            "linear_fp32 (lm_head)": lambda: k.linear_fp32(self.x, self.head),
            "gated_delta_decode": lambda: k.gated_delta_decode(
                mixed, z, b, a, weights, conv_PCX=conv, state_PNKV=state, slot_B=self.slot
            ),
            "qk_norm_rope_write": lambda: k.qk_norm_rope_write(
                qg,
                key,
                value,
                self.head_norm,
                self.head_norm,
                self.cos,
                self.sin,
                kv_P2GOE=kv,
                location_T=self.location,
                eps=EPS,
            ),
            "attention_decode": lambda: k.attention_decode(
                q, qg, kv_P2GOE=kv, page_BM=self.page, length_B=self.length, scale=E**-0.5
            ),
            "fused_moe_add": lambda: k.fused_moe_add(self.x, self.norm, EPS, self.moe[0]),
            "whole step": lambda: self.run(k),
        }


def paired_medians(sides: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each side, the sides taking turns."""
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(repeats):
        for side, record in zip(sides, times, strict=True):
            begin = time.perf_counter()
            side()
            record.append(time.perf_counter() - begin)
    return [statistics.median(record) for record in times]


def transformers_step(B: int, dtype: torch.dtype) -> Callable[[], object]:
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    config = Qwen3_5MoeTextConfig(
        vocab_size=VOCAB,
        hidden_size=D,
        num_hidden_layers=LINEAR_LAYERS + FULL_LAYERS,
        num_attention_heads=H,
        num_key_value_heads=G,
        head_dim=E,
        linear_num_key_heads=KEY_HEADS,
        linear_num_value_heads=N,
        linear_key_head_dim=K,
        linear_value_head_dim=V,
        linear_conv_kernel_dim=W,
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=SHARED_WIDTH,
        num_experts=J,
        num_experts_per_tok=TOP_K,
    )
    model = Qwen3_5MoeForCausalLM(config).to(dtype).eval()
    ids = torch.randint(VOCAB, (B, CONTEXT - 1))
    cache = model(ids, use_cache=True).past_key_values
    token = ids[:, :1]
    return lambda: model(
        token, past_key_values=cache, use_cache=True
    )  # grows a little: unfair to us


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--transformers", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cpu_build.build_all()
    for name in options.dtype:
        dtype = getattr(torch, name)
        for B in options.rows:
            print(f"\n{name}, {B} rows, {options.threads} threads")
            print(f"{'':22}{'reference us':>14}{'C++ us':>10}{'ratio':>8}")
            step = Step(B, dtype)
            fast, slow = step.parts(FAST), step.parts(REFERENCE)
            for part in fast:
                repeats = max(3, options.repeats // 10) if part == "whole step" else options.repeats
                before, after = paired_medians([slow[part], fast[part]], repeats)
                print(f"{part:22}{before * 1e6:14.0f}{after * 1e6:10.0f}{before / after:8.1f}")
            if options.transformers:
                sides = [transformers_step(B, dtype), fast["whole step"]]
                before, after = paired_medians(sides, options.repeats)
                print(
                    f"{'step: transformers':22}{before * 1e6:14.0f}{after * 1e6:10.0f}"
                    f"{before / after:8.1f}"
                )


if __name__ == "__main__":
    main()
