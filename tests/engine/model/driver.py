"""Runs a model step by step, as the runner would, on caches that nobody cleaned.

Pages and slots are drawn at random, so that no sequence is contiguous, and everything is born NaN:
whoever reads what was not written shows. Parts of a step go decodes first, as `StepInputs` wants
them; results come back in the order the parts were given.
"""

import random
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from engine.config import ModelConfig
from engine.model.inputs import Caches, StepInputs
from engine.model.qwen3_5 import Qwen3_5
from engine.plan import PAGE_TOKENS


@dataclass(eq=False)
class Sequence:
    ids: list[int]
    slot: int
    pages: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """`num_tokens` tokens of `sequence` from `start`: one decode row, or a prefill slice."""

    sequence: Sequence
    start: int
    num_tokens: int
    decodes: bool = False

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


class Driver:
    def __init__(
        self,
        model: Qwen3_5,
        config: ModelConfig,
        *,
        num_pages: int = 40,
        num_slots: int = 8,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.caches = _unclean_caches(config, num_pages, num_slots, dtype)
        shuffle = random.Random(seed).sample
        self._free_pages = shuffle(range(1, num_pages), num_pages - 1)
        self._free_slots = shuffle(range(1, num_slots), num_slots - 1)

    def add(self, ids: list[int]) -> Sequence:
        num_pages = -(-len(ids) // PAGE_TOKENS)
        pages = [self._free_pages.pop() for _ in range(num_pages)]
        return Sequence(ids, self._free_slots.pop(), pages)

    def release(self, sequence: Sequence) -> None:
        """Give back the memory as it is: the next owner finds what is in it."""
        self._free_slots.append(sequence.slot)
        self._free_pages += sequence.pages

    @torch.inference_mode()
    def step(self, *parts: Part) -> list[torch.Tensor]:
        """Compute one step; logits_TV of each part."""
        ordered = sorted(parts, key=lambda part: not part.decodes)
        hidden_TD = self.model.forward(step_inputs(ordered), self.caches)
        assert hidden_TD.shape[0] == sum(part.num_tokens for part in parts)
        logits = self.model.logits(hidden_TD).split([part.num_tokens for part in ordered])
        by_part = dict(zip(map(id, ordered), logits, strict=True))
        return [by_part[id(part)] for part in parts]

    def prefill(self, sequence: Sequence, *cuts: int, end: int | None = None) -> torch.Tensor:
        """Prefill up to `end` (or the end), one step for each piece between the cuts."""
        bounds = [0, *cuts, len(sequence.ids) if end is None else end]
        pieces = [
            self.step(Part(sequence, start, stop - start))[0] for start, stop in pairwise(bounds)
        ]
        return torch.cat(pieces)

    def decode(self, sequence: Sequence, start: int) -> torch.Tensor:
        """Decode the rest of the known ids one by one: logits_TV from `start` on."""
        return torch.cat(
            [
                self.step(Part(sequence, position, 1, decodes=True))[0]
                for position in range(start, len(sequence.ids))
            ]
        )


def step_inputs(parts: list[Part]) -> StepInputs:
    """Lay out parts that are already in order, decodes first."""
    decodes = [part for part in parts if part.decodes]
    prefills = [part for part in parts if not part.decodes]
    assert parts == decodes + prefills
    assert all(part.num_tokens == 1 for part in decodes)
    positions = [range(part.start, part.end) for part in parts]
    return StepInputs(
        token_id_T=torch.tensor(
            [i for part in parts for i in part.sequence.ids[part.start : part.end]]
        ),
        position_T=torch.tensor([position for span in positions for position in span]),
        location_T=torch.tensor(
            [
                part.sequence.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
                for part, span in zip(parts, positions, strict=True)
                for position in span
            ]
        ),
        decode_slot_B=torch.tensor([part.sequence.slot for part in decodes], dtype=torch.int64),
        decode_length_B=torch.tensor([part.end for part in decodes], dtype=torch.int32),
        decode_page_BM=_page_table(decodes),
        prefill_slot_S=torch.tensor([part.sequence.slot for part in prefills], dtype=torch.int64),
        prefill_start_S=torch.tensor([part.start for part in prefills], dtype=torch.int32),
        prefill_offset_S1=torch.tensor(
            list(accumulate((part.num_tokens for part in prefills), initial=0)), dtype=torch.int32
        ),
        prefill_page_SM=_page_table(prefills),
    )


def _page_table(parts: list[Part]) -> torch.Tensor:
    """Only the pages that hold tokens so far, padded with the scratch page."""
    rows = [part.sequence.pages[: -(-part.end // PAGE_TOKENS)] for part in parts]
    width = max(map(len, rows), default=0)
    table = torch.zeros(len(rows), width, dtype=torch.int32)
    for row, pages in zip(table, rows, strict=True):
        row[: len(pages)] = torch.tensor(pages)
    return table


def _unclean_caches(
    config: ModelConfig, num_pages: int, num_slots: int, dtype: torch.dtype
) -> Caches:
    G, E = config.num_key_value_heads, config.head_dim
    N, K = config.linear_num_value_heads, config.linear_key_head_dim
    C, X = config.conv_dim, config.linear_conv_kernel_dim - 1

    def unclean(num_layers: int, *shape: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return tuple(torch.full(shape, torch.nan, dtype=dtype) for _ in range(num_layers))

    V = config.linear_value_head_dim
    num_full, num_linear = config.num_full_layers, config.num_linear_layers
    return Caches(
        kv_LP2GOE=unclean(num_full, num_pages, 2, G, PAGE_TOKENS, E, dtype=dtype),
        conv_LPCX=unclean(num_linear, num_slots, C, X, dtype=dtype),
        state_LPNKV=unclean(num_linear, num_slots, N, K, V, dtype=torch.float32),
    )
