"""The Qwen3.5 MoE text model as something that learns fast on a CPU.

The same mathematics and the same parameter names as transformers'
`Qwen3_5MoeForConditionalGeneration` (a test compares the two), written for training: DeltaNet by
chunks of 64 for all chunks at once, one product for all experts, matrices in bf16 with fp32
masters. The MTP layer is the family's: one attention layer on [norm(embedding of the next token),
norm(hidden)].

B sequences of T tokens (T a multiple of 64), D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

CHUNK_TOKENS = 64
ROOM_MULTIPLE = 64


class Network(nn.Module):
    def __init__(self, text: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
        """`text` is the `text_config` of config.json; `dtype` that of the big products."""
        super().__init__()
        self.text, self.dtype = text, dtype
        D = text["hidden_size"]
        self.embed_tokens = nn.Embedding(text["vocab_size"], D)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        self.layers = nn.ModuleList(Layer(text, kind, dtype) for kind in text["layer_types"])
        self.norm = Norm(D)
        self.mtp = Mtp(text, dtype)

    def forward(self, token_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden_BTD after the final norm, what the routers lose by imbalance)."""
        cos_sin = rotations(self.text, token_BT.shape[1])
        x_BTD = self.embed_tokens(token_BT)
        imbalance = x_BTD.new_zeros(())
        for layer in self.layers:
            x_BTD, lost = layer(x_BTD, cos_sin)
            imbalance = imbalance + lost
        return self.norm(x_BTD), imbalance / len(self.layers)

    def logits(self, hidden_xD: torch.Tensor) -> torch.Tensor:
        return _linear(hidden_xD, self.embed_tokens.weight, self.dtype).float()


class Norm(nn.Module):
    """Zero-centred RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x.float(), x.shape[-1:], 1.0 + self.weight, 1e-6)


def _linear(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return functional.linear(x.to(dtype), weight.to(dtype))


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * gain * inputs**-0.5)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _linear(x, self.weight, self.dtype)


class Layer(nn.Module):
    def __init__(self, text: dict[str, Any], kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        D = text["hidden_size"]
        self.input_layernorm, self.post_attention_layernorm = Norm(D), Norm(D)
        self.is_attention = kind == "full_attention"
        if self.is_attention:
            self.self_attn = Attention(text, dtype)
        else:
            self.linear_attn = DeltaNet(text, dtype)
        self.mlp = Experts(text, dtype)

    def forward(
        self, x_BTD: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed_BTD = self.input_layernorm(x_BTD)
        if self.is_attention:
            x_BTD = x_BTD + self.self_attn(normed_BTD, cos_sin)
        else:
            x_BTD = x_BTD + self.linear_attn(normed_BTD)
        y_BTD, imbalance = self.mlp(self.post_attention_layernorm(x_BTD))
        return x_BTD + y_BTD, imbalance


def rotary_dims(text: dict[str, Any]) -> int:
    return int(text["head_dim"] * text["rope_parameters"]["partial_rotary_factor"])


def rotations(text: dict[str, Any], num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos_TR and sin_TR of the partial rotary embedding; text needs no mRoPE sections."""
    width = rotary_dims(text)
    frequency = text["rope_parameters"]["rope_theta"] ** -(
        torch.arange(0, width, 2).double() / width
    )
    angle_TR = (torch.arange(num_tokens).double()[:, None] * frequency).repeat(1, 2)
    return angle_TR.cos().float(), angle_TR.sin().float()


def _rotated(x_BHTE: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    cos_TR, sin_TR = cos_sin
    rotary, rest = x_BHTE.split((cos_TR.shape[1], x_BHTE.shape[-1] - cos_TR.shape[1]), dim=-1)
    low, high = rotary.chunk(2, dim=-1)
    return torch.cat((rotary * cos_TR + torch.cat((-high, low), -1) * sin_TR, rest), dim=-1)


class Attention(nn.Module):
    def __init__(self, text: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
        self.head_dim, D = text["head_dim"], text["hidden_size"]
        self.q_proj = Linear(D, 2 * self.heads * self.head_dim, dtype)
        self.k_proj = Linear(D, self.kv_heads * self.head_dim, dtype)
        self.v_proj = Linear(D, self.kv_heads * self.head_dim, dtype)
        self.o_proj = Linear(self.heads * self.head_dim, D, dtype, gain=0.1)
        self.q_norm, self.k_norm = Norm(self.head_dim), Norm(self.head_dim)
        self.dtype = dtype

    def forward(
        self, x_BTD: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Leaves query_BHTE and key_BGTE, in fp32, in `queries_and_keys`."""
        qg_BTHE = self.q_proj(x_BTD).unflatten(-1, (self.heads, 2 * self.head_dim))
        q_BTHE, gate_BTHE = qg_BTHE.chunk(2, dim=-1)
        k_BTGE = self.k_proj(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        v_BTGE = self.v_proj(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        q_BHTE = _rotated(self.q_norm(q_BTHE).transpose(1, 2), cos_sin)
        k_BGTE = _rotated(self.k_norm(k_BTGE).transpose(1, 2), cos_sin)
        self.queries_and_keys = (q_BHTE, k_BGTE)
        group = self.heads // self.kv_heads
        k_BHTE, v_BHTE = (
            x.to(self.dtype).repeat_interleave(group, dim=1)
            for x in (k_BGTE, v_BTGE.transpose(1, 2))
        )
        o_BHTE = functional.scaled_dot_product_attention(
            q_BHTE.to(self.dtype), k_BHTE, v_BHTE, is_causal=True
        )
        o_BTHE = o_BHTE.transpose(1, 2) * torch.sigmoid(gate_BTHE)
        return self.o_proj(o_BTHE.flatten(2))


class DeltaNet(nn.Module):
    def __init__(self, text: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.H, self.K = text["linear_num_key_heads"], text["linear_key_head_dim"]
        self.N, self.V = text["linear_num_value_heads"], text["linear_value_head_dim"]
        D, W = text["hidden_size"], text["linear_conv_kernel_dim"]
        channels = 2 * self.H * self.K + self.N * self.V
        self.in_proj_qkv = Linear(D, channels, dtype)
        self.in_proj_z = Linear(D, self.N * self.V, dtype)
        self.in_proj_b, self.in_proj_a = Linear(D, self.N, dtype), Linear(D, self.N, dtype)
        self.conv1d = nn.Conv1d(channels, channels, W, groups=channels, padding=W - 1, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.N).uniform_(1, 16).log())
        # Steps between 0.001 and 0.1, as in Mamba 2: heads that forget fast and heads that do not.
        step_N = torch.empty(self.N).uniform_(-6.9, -2.3).exp()
        self.dt_bias = nn.Parameter(step_N + torch.log(-torch.expm1(-step_N)))
        self.norm = GatedNorm(self.V)
        self.dtype = dtype
        self.out_proj = Linear(self.N * self.V, D, dtype, gain=0.1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        T = x_BTD.shape[1]
        mixed_BCT = self.in_proj_qkv(x_BTD).float().transpose(1, 2)
        # Contiguous from here on: a strided pass costs several plain ones.
        mixed_BTC = functional.silu(self.conv1d(mixed_BCT)[..., :T].transpose(1, 2).contiguous())
        q, k, v = mixed_BTC.split((self.H * self.K, self.H * self.K, self.N * self.V), dim=-1)
        q_BTHK, k_BTHK = (x.unflatten(-1, (self.H, self.K)) for x in (q, k))
        beta_BTN = torch.sigmoid(self.in_proj_b(x_BTD).float())
        g_BTN = -self.A_log.exp() * functional.softplus(
            self.in_proj_a(x_BTD).float() + self.dt_bias
        )
        v_BTNV = v.unflatten(-1, (self.N, self.V))
        o_BTNV = delta_rule(q_BTHK, k_BTHK, v_BTNV, beta_BTN, g_BTN, self.dtype)
        z_BTNV = self.in_proj_z(x_BTD).unflatten(-1, (self.N, self.V))
        return self.out_proj(self.norm(o_BTNV, z_BTNV).flatten(2))


class GatedNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight, 1e-6) * functional.silu(z.float())


def delta_rule(
    q_BTHK: torch.Tensor,
    k_BTHK: torch.Tensor,
    v_BTNV: torch.Tensor,
    beta_BTN: torch.Tensor,
    g_BTN: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """o_BTNV of the gated delta rule from a zero state, in fp32; see `kernels/gated_delta`."""
    B, T, N, V = v_BTNV.shape
    H, K = q_BTHK.shape[2:]
    C = T // CHUNK_TOKENS

    def chunked(x: torch.Tensor) -> torch.Tensor:  # [B, heads, C, 64, ...]
        return x.unflatten(1, (C, CHUNK_TOKENS)).movedim(3, 1).contiguous()

    q, k = (
        chunked(x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)).repeat_interleave(
            N // H, dim=1
        )
        for x in (q_BTHK, k_BTHK)
    )
    q = q * K**-0.5
    v, beta, G = chunked(v_BTNV), chunked(beta_BTN), chunked(g_BTN).cumsum(-1)
    causal = torch.ones(CHUNK_TOKENS, CHUNK_TOKENS, dtype=torch.bool).tril()
    decay = (G[..., :, None] - G[..., None, :]).masked_fill(~causal, float("-inf")).exp()
    kept = G.exp()[..., None]
    A = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    right = beta[..., None] * torch.cat((v, kept * k), dim=-1)
    U, W = torch.linalg.solve_triangular(A, right, upper=False, unitriangular=True).split(
        (V, K), dim=-1
    )
    # The state stays in fp32, the big products need not.
    low = dtype
    inside = ((q.to(low) @ k.to(low).mT).float() * decay).to(low)
    q_kept, W = (kept * q).to(low), W.to(low)
    k_left = ((G[..., -1:] - G).exp()[..., None] * k).to(low)
    last = G[..., -1].exp()[..., None, None]
    state = v.new_zeros(B, N, K, V)
    outputs: list[torch.Tensor] = []
    # Taken apart at once: the gradient of an index is as large as what it was taken from.
    chunks = zip(*(x.unbind(2) for x in (U, W, q_kept, inside, k_left, last)), strict=True)
    for U_c, W_c, q_c, inside_c, k_c, last_c in chunks:
        low_state = state.to(low)
        new = (U_c - W_c @ low_state).to(low)
        outputs.append(q_c @ low_state + inside_c @ new)
        state = last_c * state + k_c.mT @ new
    return torch.stack(outputs, dim=1).movedim(2, 3).flatten(1, 2).contiguous().float()


class Experts(nn.Module):
    def __init__(self, text: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        D, J, F = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
        self.top_k, self.dtype = text["num_experts_per_tok"], dtype
        self.gate = Linear(D, J, torch.float32, gain=0.3)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.randn(J, 2 * F, D) * D**-0.5)
        self.experts.down_proj = nn.Parameter(torch.randn(J, D, F) * 0.1 * F**-0.5)
        self.shared_expert = Swiglu(D, text["shared_expert_intermediate_size"], dtype)
        self.shared_expert_gate = Linear(D, 1, dtype)

    def forward(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_TD = x_BTD.flatten(0, 1)
        T, J = x_TD.shape[0], self.gate.weight.shape[0]
        probability_TJ = self.gate(x_TD).softmax(-1)
        weight_TK, expert_TK = probability_TJ.topk(self.top_k, dim=-1)
        weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        # Each expert's rows at places of its own, padded so that there are few different shapes:
        # oneDNN makes new code for every shape it has not seen.
        chosen_S = expert_TK.flatten()
        count_J = torch.bincount(chosen_S, minlength=J)
        order_S = chosen_S.argsort(stable=True)
        first_J = count_J.cumsum(0) - count_J
        rank_S = torch.empty_like(order_S)
        rank_S[order_S] = torch.arange(len(order_S)) - first_J[chosen_S[order_S]]
        room_J = (count_J + ROOM_MULTIPLE - 1) // ROOM_MULTIPLE * ROOM_MULTIPLE
        place_S = (room_J.cumsum(0) - room_J)[chosen_S] + rank_S
        rooms = room_J.tolist()
        x_SD = x_TD.to(self.dtype).repeat_interleave(self.top_k, dim=0)
        x_RD = _Placed.apply(x_SD, place_S, sum(rooms))
        gate_up_RF = _by_expert(x_RD, rooms, self.experts.gate_up_proj.to(self.dtype))
        gate_RF, up_RF = gate_up_RF.chunk(2, dim=-1)
        # Weighted where the rows are narrow.
        weight_R1 = _Placed.apply(weight_TK.flatten()[:, None].to(self.dtype), place_S, sum(rooms))
        h_RF = functional.silu(gate_RF) * up_RF * weight_R1
        y_RD = _by_expert(h_RF, rooms, self.experts.down_proj.to(self.dtype))
        y_TKD = _Taken.apply(y_RD, place_S).unflatten(0, (T, self.top_k))
        y_TD = y_TKD.sum(1, dtype=torch.float32)
        shared_TD = self.shared_expert(x_TD)
        y_TD = y_TD + torch.sigmoid(self.shared_expert_gate(x_TD)) * shared_TD
        share_J = count_J.float() / (T * self.top_k)
        imbalance = J * (share_J * probability_TJ.mean(0)).sum()  # 1 when all is even
        return y_TD.view_as(x_BTD), imbalance


def _by_expert(x_RA: torch.Tensor, rooms: list[int], weight_JBA: torch.Tensor) -> torch.Tensor:
    pairs = zip(x_RA.split(rooms), weight_JBA.unbind(), strict=True)
    return torch.cat([x_A @ weight_BA.T for x_A, weight_BA in pairs])


class _Placed(torch.autograd.Function):
    """Rows at different places of a larger tensor of zeros; the gradient just takes them back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: torch.Tensor, room: int) -> torch.Tensor:
        ctx.save_for_backward(place)
        placed = x.new_zeros(room, x.shape[1])
        placed[place] = x
        return placed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grad[place], None, None


class _Taken(torch.autograd.Function):
    """The reverse of `_Placed`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(place)
        ctx.room = x.shape[0]
        return x[place]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (place,) = ctx.saved_tensors
        whole = grad.new_zeros(ctx.room, grad.shape[1])
        whole[place] = grad
        return whole, None


class Swiglu(nn.Module):
    def __init__(self, D: int, F: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = Linear(D, F, dtype), Linear(D, F, dtype)
        self.down_proj = Linear(F, D, dtype, gain=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Mtp(nn.Module):
    """Predicts the token after the next."""

    def __init__(self, text: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        D = text["hidden_size"]
        self.text = text
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = Norm(D), Norm(D)
        self.fc = Linear(2 * D, D, dtype)
        self.layers = nn.ModuleList([Layer(text, "full_attention", dtype)])
        self.norm = Norm(D)

    def forward(
        self, embedding_BTD: torch.Tensor, hidden_BTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`embedding_BTD` is of the token after the one that `hidden_BTD` belongs to."""
        both = (self.pre_fc_norm_embedding(embedding_BTD), self.pre_fc_norm_hidden(hidden_BTD))
        x_BTD = self.fc(torch.cat(both, dim=-1)).float()
        x_BTD, imbalance = self.layers[0](x_BTD, rotations(self.text, x_BTD.shape[1]))
        return self.norm(x_BTD), imbalance


@torch.no_grad()
def prime(network: Network) -> None:
    """Begin with layers that can find a token again and say what stood behind it.

    Everything the demo does rests on that, and from random weights it takes most of the training
    to discover. In each DeltaNet layer the first half of the key heads looks with the current
    token, by the same projection, for keys made of the token before; what is read out is what was
    written. Forgetting begins slowly. In attention layers values are read out as they were stored.
    """
    for layer in network.layers:
        if layer.is_attention:
            mixer = layer.self_attn
            group = mixer.heads // mixer.kv_heads
            value_GED = mixer.v_proj.weight.unflatten(0, (mixer.kv_heads, mixer.head_dim))
            read_FD = value_GED.repeat_interleave(group, dim=0).flatten(0, 1)
            mixer.o_proj.weight.copy_(0.3 * read_FD.T)
            continue
        mixer = layer.linear_attn
        width, half = mixer.H * mixer.K, mixer.H * mixer.K // 2
        q_FD, k_FD, v_FD = mixer.in_proj_qkv.weight.split((width, width, mixer.N * mixer.V))
        q_FD[:half] = k_FD[:half]
        nn.init.orthogonal_(v_FD)
        mixer.out_proj.weight.copy_(0.5 * v_FD.T)
        taps_CW = mixer.conv1d.weight[:, 0]
        taps_CW.mul_(0.2)
        taps_CW[:, -1] += 1.0
        taps_CW[width : width + half] = 0.0
        taps_CW[width : width + half, -2] = 1.0
        mixer.A_log.uniform_(1, 4).log_()
        step_N = torch.empty(mixer.N).uniform_(-7.5, -4.0).exp()
        mixer.dt_bias.copy_(step_N + torch.log(-torch.expm1(-step_N)))
