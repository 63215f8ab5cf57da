"""A model in whole numbers whose next token depends on every token before, and a solo reference.

It walks its inputs the way a real one does: recurrent state by slot, K and V by location and page
table. The hidden row of a token holds two hashes, one of them carried in the state and one summed
over the pages, so a slot or page that is read or written wrongly shows in the next token.
"""

import torch

from engine.config import MemoryPlan, ModelConfig
from engine.model.inputs import Caches, StepInputs
from engine.plan import PAGE_TOKENS, SCRATCH
from engine.runner.tensors import allocate_caches

PRIME = 65_521  # sums of products of such numbers are exact in fp32 after each modulus, via int64


def tiny_config(vocab_size: int) -> ModelConfig:
    return ModelConfig(
        architecture="Qwen3_5ForCausalLM",
        vocab_size=vocab_size,
        hidden_size=2,
        layer_types=("linear_attention", "full_attention"),
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        dtype="float32",
        eos_token_id=(0,),
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=1,
        rope_theta=1e7,
        rotary_dim=0,
        mrope_section=(0, 0, 0),
        yarn_factor=None,
        yarn_original_max_position=4096,
        linear_num_key_heads=1,
        linear_num_value_heads=1,
        linear_key_head_dim=1,
        linear_value_head_dim=1,
        linear_conv_kernel_dim=4,
        intermediate_size=1,
        num_experts=0,
        num_experts_per_tok=0,
        moe_intermediate_size=0,
        shared_expert_intermediate_size=0,
    )


def tiny_caches(vocab_size: int, *, num_pages: int, num_slots: int) -> Caches:
    plan = MemoryPlan(
        num_pages=num_pages,
        num_slots=num_slots,
        page_bytes=0,
        slot_bytes=0,
        max_model_len=0,
        max_num_seqs=num_slots,
        max_step_tokens=0,
    )
    return allocate_caches(tiny_config(vocab_size), plan, dtype=torch.float32)


def advance(state: int, token: int) -> int:
    return (state * 31 + token + 7) % PRIME


def weigh(token: int, position: int) -> int:
    return (token + 1) * (position + 3) % PRIME


class HashModel:
    """Logits are noise, fixed by the two hashes; `spread` is their standard deviation."""

    def __init__(self, vocab_size: int, spread: float = 3.0) -> None:
        g = torch.Generator().manual_seed(0)
        self._noise_ZV = torch.randn(997, vocab_size, generator=g) * spread
        self.num_logits_rows: list[int] = []  # of each call, for tests that count them

    def forward(self, inputs: StepInputs, caches: Caches) -> torch.Tensor:
        (kv_P2GOE,), (state_PNKV,) = caches.kv_LP2GOE, caches.state_LPNKV
        flat_kv = kv_P2GOE[:, :, 0, :, 0]  # [P, 2, O]
        token_T, position_T = inputs.token_id_T.tolist(), inputs.position_T.tolist()
        locations = inputs.location_T.tolist()
        for token, position, location in zip(token_T, position_T, locations, strict=True):
            page, offset = divmod(location, PAGE_TOKENS)
            flat_kv[page, 0, offset] = weigh(token, position)
            flat_kv[page, 1, offset] = token
        B = inputs.num_decodes
        decodes = zip(
            inputs.decode_slot_B.tolist(),
            (inputs.decode_length_B - 1).tolist(),
            range(B),
            range(1, B + 1),
            inputs.decode_page_BM.tolist(),
            strict=True,
        )
        bounds = (inputs.prefill_offset_S1 + B).tolist()
        prefills = zip(
            inputs.prefill_slot_S.tolist(),
            inputs.prefill_start_S.tolist(),
            bounds,
            bounds[1:],
            inputs.prefill_page_SM.tolist(),
            strict=False,
        )
        hidden_TD = torch.full((len(token_T), 2), torch.nan)
        for slot, start, begin, end, pages in (*decodes, *prefills):
            if start < 0:  # padding: no token at all
                assert (slot, token_T[begin], locations[begin]) == (SCRATCH, 0, 0)
                continue
            state = int(state_PNKV[slot]) if start else 0
            for row in range(begin, end):
                assert position_T[row] == start + row - begin
                state = advance(state, token_T[row])
                length = position_T[row] + 1
                keys = flat_kv[pages, 0].flatten()[:length]
                hidden_TD[row] = torch.tensor([state, int(keys.double().sum()) % PRIME])
            state_PNKV[slot] = state
        return hidden_TD

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        self.num_logits_rows.append(len(hidden_RD))
        return self._noise_ZV[(hidden_RD[:, 0] * 5 + hidden_RD[:, 1]).long() % 997]

    def solo_logits(self, ids: list[int]) -> torch.Tensor:
        """What every position of a sequence predicts, from the ids alone."""
        rows: list[list[int]] = []
        state = total = 0
        for position, token in enumerate(ids):
            state = advance(state, token)
            total += weigh(token, position)
            rows.append([state, total % PRIME])
        return self.logits(torch.tensor(rows, dtype=torch.float32))
