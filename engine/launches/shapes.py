"""Whose launches are recorded: models as one rank of a tensor-parallel group holds them, and steps.

A rank's model is the same model with smaller numbers: heads, expert and FFN widths and the
vocabulary are divided by the ranks; where there are more ranks than key/value heads, each has one.
"""

from dataclasses import dataclass
from random import Random

import msgspec
import torch

from engine.config import MemoryPlan, ModelConfig
from engine.model.inputs import Caches, StepInputs
from engine.plan import PAGE_TOKENS, Slice, StepPlan
from engine.request import SamplingParams
from engine.runner.tensors import allocate_caches

MOE = ModelConfig(
    architecture="Qwen3_5MoeForConditionalGeneration",
    vocab_size=248320,
    hidden_size=2048,
    layer_types=(*3 * ("linear_attention",), "full_attention") * 10,
    max_position_embeddings=262144,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    dtype="bfloat16",
    eos_token_id=(248044,),
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=256,
    rope_theta=1e7,
    rotary_dim=64,
    mrope_section=(11, 11, 10),
    yarn_factor=None,
    yarn_original_max_position=262144,
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
    intermediate_size=0,
    num_experts=256,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
)
DENSE = msgspec.structs.replace(
    MOE,
    architecture="Qwen3_5ForConditionalGeneration",
    hidden_size=4096,
    layer_types=(*3 * ("linear_attention",), "full_attention") * 8,
    num_key_value_heads=4,
    intermediate_size=12288,
    num_experts=0,
    num_experts_per_tok=0,
    moe_intermediate_size=0,
    shared_expert_intermediate_size=0,
)
MODELS = {"35B-A3B": MOE, "9B": DENSE}

NUM_REAL_TOKENS = 248077  # of the vocabulary; the rest is padding


def of_rank(model: ModelConfig, num_ranks: int) -> ModelConfig:
    return msgspec.structs.replace(
        model,
        vocab_size=model.vocab_size // num_ranks,
        num_attention_heads=model.num_attention_heads // num_ranks,
        num_key_value_heads=max(1, model.num_key_value_heads // num_ranks),
        linear_num_key_heads=model.linear_num_key_heads // num_ranks,
        linear_num_value_heads=model.linear_num_value_heads // num_ranks,
        intermediate_size=model.intermediate_size // num_ranks,
        moe_intermediate_size=model.moe_intermediate_size // num_ranks,
        shared_expert_intermediate_size=model.shared_expert_intermediate_size // num_ranks,
    )


def few_layers(model: ModelConfig) -> ModelConfig:
    """One layer of each kind starts the kernels of all."""
    return msgspec.structs.replace(model, layer_types=tuple(sorted(set(model.layer_types))))


@dataclass(frozen=True, slots=True)
class Step:
    """Decode rows, each the last token of `context` tokens, and slices that start a prompt each."""

    num_decodes: int = 0
    context: int = 8192
    slices: tuple[int, ...] = ()  # their lengths

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + sum(self.slices)

    @property
    def num_samples(self) -> int:
        return self.num_decodes + len(self.slices)

    def __str__(self) -> str:
        parts: list[str] = []
        if self.num_decodes:
            parts.append(f"{self.num_decodes} decoding at {self.context}")
        if self.slices:
            parts.append("prefill of " + " + ".join(map(str, self.slices)))
        return ", ".join(parts)

    def inputs(self) -> StepInputs:
        B, S, T = self.num_decodes, len(self.slices), self.num_tokens
        decode_pages = _num_pages(self.context) if B else 0
        prefill_pages = max(map(_num_pages, self.slices), default=0)
        return StepInputs(
            token_id_T=_meta((T,), torch.int64),
            position_T=_meta((T,), torch.int64),
            location_T=_meta((T,), torch.int64),
            decode_slot_B=_meta((B,), torch.int64),
            decode_length_B=_meta((B,), torch.int32),
            decode_page_BM=_meta((B, decode_pages), torch.int32),
            prefill_slot_S=_meta((S,), torch.int64),
            prefill_start_S=_meta((S,), torch.int32),
            prefill_offset_S1=_meta((S + 1,), torch.int32),
            prefill_page_SM=_meta((S, prefill_pages), torch.int32),
        )

    def plan(self) -> StepPlan:
        """Sequences in slots of their own, from the first, and their pages one after the other."""
        lengths = [*[self.context] * self.num_decodes, *self.slices]
        slices: list[Slice] = []
        first = 1
        for i, length in enumerate(lengths):
            decodes, pages = i < self.num_decodes, _num_pages(length)
            slices.append(
                Slice(
                    request_id=f"r{i}",
                    epoch=0,
                    slot=i + 1,
                    start=length - 1 if decodes else 0,
                    num_tokens=1 if decodes else length,
                    token_ids=() if decodes else (0,) * length,
                    pages=tuple(range(first, first + pages)),
                    decodes=decodes,
                    samples=True,
                )
            )
            first += pages
        return StepPlan(tuple(slices))

    def caches(self, model: ModelConfig, dtype: torch.dtype) -> Caches:
        """Pools that hold the step, as shapes."""
        pages = self.num_decodes * _num_pages(self.context) + sum(map(_num_pages, self.slices))
        plan = MemoryPlan(
            num_pages=pages,
            num_slots=self.num_samples,
            page_bytes=0,
            slot_bytes=0,
            max_model_len=self.context,
            max_num_seqs=self.num_samples,
            max_step_tokens=self.num_tokens,
        )
        return allocate_caches(model, plan, dtype=dtype, device=torch.device("meta"))


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def _meta(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


DECODE = tuple(Step(num_decodes=batch) for batch in (1, 8, 64, 256))
PREFILL = Step(slices=(2048,))
MIXED = Step(num_decodes=8, slices=(2048,))
STEPS = (*DECODE, PREFILL, MIXED)

# More sizes, between and beyond those: what is compiled for the others serves them too.
ODD_STEPS = (
    *(Step(num_decodes=batch, context=1000 + batch) for batch in (2, 3, 5, 16, 17, 33, 100, 500)),
    *(Step(slices=slices) for slices in ((1,), (15, 64), (100,), (777, 1, 63), (8192,))),
    Step(num_decodes=3, context=70000, slices=(33, 500)),
)


def random_steps(number: int, *, seed: int = 0) -> list[Step]:
    """Steps of every size that a server may plan."""
    random = Random(seed)

    def size(most: int) -> int:
        return int(most ** random.random())

    return [
        Step(
            num_decodes=size(512),
            context=size(262144),
            slices=tuple(size(4096) for _ in range(random.randrange(4))),
        )
        for _ in range(number)
    ]


def random_batches(
    number: int, *, seed: int = 0
) -> list[tuple[tuple[SamplingParams, ...], list[int]]]:
    """Requests of every kind that share a step, and the rows of those that have a grammar."""
    random = Random(seed)

    def some(**wish: object) -> dict[str, object]:
        return wish if random.random() < 0.3 else {}

    def sampling(has_xtc: bool) -> SamplingParams:
        wishes = {
            "temperature": random.choice([0.0, 0.7, 1.0]),
            **some(top_k=random.choice([1, 32, 33, 1000, 2000])),
            **some(top_p=0.9),
            **some(min_p=0.1),
            **some(presence_penalty=0.5),
            **some(repetition_penalty=1.2),
            **some(logit_bias=random.choice([((1, 0.5),), ((1, -100.0),), ((1, 100.0),)])),
            **some(allowed_token_ids=(1, 2)),
            **some(stop_token_ids=(1,), min_tokens=4),
            **some(dry_multiplier=1.0),
            **some(num_logprobs=random.choice([0, 1, 20])),
            **(some(xtc_probability=0.5) if has_xtc else {}),
        }
        return SamplingParams(max_tokens=9, seed=1, **wishes)  # pyright: ignore[reportArgumentType]

    batches: list[tuple[tuple[SamplingParams, ...], list[int]]] = []
    for _ in range(number):
        size, has_xtc, has_grammars = (
            int(100 ** random.random()),
            *random.choices((True, False), k=2),
        )
        batch = tuple(sampling(has_xtc) for _ in range(size))
        batches.append((batch, [r for r in range(size) if has_grammars and random.random() < 0.5]))
    return batches
