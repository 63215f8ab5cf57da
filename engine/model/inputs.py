"""What the model computes on: one step as a ragged batch of tensors, and the caches behind it.

Letters, here and in every model and kernel file:
T tokens of the step, B decode rows, S prefill slices, M pages per table row (padded with page 0),
D hidden size, H query heads, G key/value heads, E attention head dim, R rotary dims,
N value heads and K/V key/value dims of the DeltaNet, C convolution channels (packed Q | K | V),
W convolution kernel width, X = W - 1 saved columns, P pages or slots of a pool, O tokens per page,
F expert or FFN width, J experts.

Rows: the B decode rows come first, one token each; then the S prefill slices, packed.

Where a row stands in its sequence is told by `location`, `start` and `length`. `position` is what
its rotary angle is made from, and nothing else: behind a picture the two differ, and inside of one
there are three positions. Decode rows never need more than one, so the inputs of a graph are the
same with and without pictures.

Z rows get the features of a picture instead of their token's embedding; Y states are saved.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Features:
    """What pictures put in the place of embeddings."""

    row_Z: torch.Tensor  # int64, of the step's T rows, each once
    feature_ZD: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepInputs:
    token_id_T: torch.Tensor  # int64
    position_T: torch.Tensor  # int64: of text, the index in the sequence
    location_T: torch.Tensor  # int64: page * PAGE_TOKENS + offset, where the token's K and V go

    decode_slot_B: torch.Tensor  # int64
    decode_length_B: torch.Tensor  # int32: tokens of the sequence with this one
    decode_page_BM: torch.Tensor  # int32

    prefill_slot_S: torch.Tensor  # int64
    prefill_start_S: torch.Tensor  # int32: position of the slice's first token; 0 means zero state
    prefill_offset_S1: torch.Tensor  # int32: rows of slice s are B + offset[s] .. B + offset[s + 1]
    prefill_page_SM: torch.Tensor  # int32

    position_3T: torch.Tensor | None = None  # int64: time, height, width; None: all `position_T`
    features: Features | None = None
    # The state after each of these prefill rows, counted from the first of them, is saved there.
    save_row_Y: torch.Tensor | None = None  # int64: ends of pages
    save_slot_Y: torch.Tensor | None = None  # int64

    @property
    def num_decodes(self) -> int:
        return self.decode_slot_B.shape[0]

    @property
    def num_prefills(self) -> int:
        return self.prefill_slot_S.shape[0]


@dataclass(frozen=True, slots=True)
class Caches:
    """The bytes behind pages and slots. Page 0 and slot 0 are scratch."""

    kv_LP2GOE: tuple[torch.Tensor, ...]  # one [P, 2, G, O, E] per attention layer; 0: K, 1: V
    conv_LPCX: tuple[
        torch.Tensor, ...
    ]  # one [P, C, X] per DeltaNet layer: raw columns, oldest first
    state_LPNKV: tuple[torch.Tensor, ...]  # one [P, N, K, V] per DeltaNet layer, fp32
