"""From a step plan to the tensors the model reads.

A sequence's pages only grow between two admits, so its row of the page table stays on the device
and only new pages are sent. All else is array arithmetic over the slices: the Python work of a step
is a constant per slice, however many tokens it has.

`send` packs what the host knows into one copy. `inputs` does the rest, on the device: tokens that
only the device knows, and the page tables of the step's slots. A graph captures `inputs` together
with the model, on buffers of a fixed address, so that later only `send` is needed.

Letters as in `engine/model/inputs.py`; I is all slices of the plan, B + S of them, R those that
draw a token, U pages that are new, A pages in a row of the whole table, Y states to save.
"""

from dataclasses import dataclass

import numpy as np
import torch

from engine.model.inputs import Features, StepInputs
from engine.plan import PAGE_TOKENS, SCRATCH, StepPlan
from engine.runner.positions import SlotPositions
from engine.runner.rows import Rows
from engine.runner.staging import Staging, staged_bytes

_UNKNOWN = -1  # stands for a token that only the device knows
_NUM_ARRAYS = 13  # as long as a step
_NUM_PAGE_ARRAYS = 2  # as long as the page tables


@dataclass(frozen=True, slots=True)
class SampledRows:
    """The rows of a step that draw a token: their slots, and the positions they draw for."""

    slots: list[int]
    positions: list[int]
    slot_R: torch.Tensor
    position_R: torch.Tensor
    row_R: torch.Tensor  # of the step's hidden states

    def __getitem__(self, part: slice) -> "SampledRows":
        return SampledRows(
            self.slots[part],
            self.positions[part],
            self.slot_R[part],
            self.position_R[part],
            self.row_R[part],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """A plan's numbers on the device. They hold until the next step's are sent."""

    token_id_T: torch.Tensor  # below 0: whatever was sampled last in the row's slot
    position_T: torch.Tensor
    location_T: torch.Tensor
    decode_slot_B: torch.Tensor
    decode_length_B: torch.Tensor
    prefill_slot_S: torch.Tensor
    prefill_start_S: torch.Tensor
    prefill_offset_S1: torch.Tensor
    save_row_Y: torch.Tensor
    save_slot_Y: torch.Tensor
    position_3T: torch.Tensor | None  # not of a graph's buffers: a graph has no prefills
    num_decode_pages: int  # wanted in each row of the page tables
    num_prefill_pages: int
    has_unknown: bool
    sampled: SampledRows


class BatchBuilder:
    """Owns the page tables. Slices of one plan that share a slot must share their pages."""

    def __init__(
        self,
        rows: Rows,
        positions: SlotPositions,
        *,
        num_slots: int,
        max_step_tokens: int,
        max_pages: int,
    ) -> None:
        """`num_slots` counts the scratch slot; `max_pages` is of one sequence."""
        self._rows = rows
        self._positions = positions
        self._page_PA = np.zeros((num_slots, max_pages), dtype=np.int32)
        self._num_pages = [0] * num_slots
        self._device_page_PA = torch.zeros(
            num_slots, max_pages, dtype=torch.int32, device=rows.device.torch_device
        )
        # Graphs need tables of one width; eager steps beside them get the same.
        self._has_fixed_width = rows.device.captures
        longest = max_step_tokens + num_slots + 1
        # Whoever continues from the cache brings all of its pages at once.
        most_pages = staged_bytes(_NUM_PAGE_ARRAYS, num_slots * max_pages)
        self._staging = Staging(rows.device, staged_bytes(_NUM_ARRAYS, longest) + most_pages)

    def forget(self, slot: int) -> None:
        """The slot's next slice brings pages of another sequence, or of another epoch."""
        if self._num_pages[slot]:
            self._page_PA[slot, : self._num_pages[slot]] = SCRATCH
            self._device_page_PA[slot] = SCRATCH
            self._num_pages[slot] = 0

    def send(self, plan: StepPlan, *, num_rows: int | None = None) -> Batch:
        """The plan has at least one slice, and the slots of its admits are forgotten.

        With `num_rows` the plan has decodes only, and rows of scratch fill them up to that many.
        """
        ids: list[int] = []
        num_unknown = 0
        added: list[tuple[int, int]] = []  # slots with new pages, and the first of these
        for part in plan.slices:
            if not part.token_ids:
                assert part.decodes, "a prefill brings its tokens"
                num_unknown += 1
            ids.extend(part.token_ids or (_UNKNOWN,))
            known = self._num_pages[part.slot]
            if len(part.pages) > known:
                self._page_PA[part.slot, known : len(part.pages)] = part.pages[known:]
                self._num_pages[part.slot] = len(part.pages)
                added.append((part.slot, known))

        B = sum(part.decodes for part in plan.slices)
        assert all(part.decodes for part in plan.slices[:B]), "decodes come first"
        assert len(ids) == plan.num_tokens, "token ids do not fit the slices"
        slot_I = np.array([part.slot for part in plan.slices], dtype=np.int64)
        start_I = np.array([part.start for part in plan.slices], dtype=np.int64)
        length_I = np.array([part.num_tokens for part in plan.slices], dtype=np.int64)
        offset_I1 = np.zeros(len(slot_I) + 1, dtype=np.int64)
        length_I.cumsum(out=offset_I1[1:])

        slot_T = slot_I.repeat(length_I)
        index_T = np.arange(len(ids)) + (start_I - offset_I1[:-1]).repeat(length_I)
        page_T = self._page_PA[slot_T, index_T // PAGE_TOKENS]
        location_T = page_T.astype(np.int64) * PAGE_TOKENS + index_T % PAGE_TOKENS
        position_T, position_3T = self._positions.of(plan.slices, index_T)
        decodes = [
            np.array(ids, dtype=np.int64),
            position_T,
            location_T,
            slot_I[:B],
            (start_I[:B] + 1).astype(np.int32),
        ]
        if num_rows is not None:
            assert len(slot_I) == B <= num_rows, "this plan does not fit"
            decodes = [_padded(array, num_rows) for array in decodes]
        saves = [
            (first + end - part.start - 1 - B, slot)
            for part, first in zip(plan.slices, offset_I1.tolist(), strict=False)
            for end, slot in part.saves
        ]
        samples = np.array([part.samples for part in plan.slices], dtype=np.bool_)
        slot_R, position_R = slot_I[samples], (start_I + length_I)[samples]
        views = self._staging.send(
            [
                *decodes,
                slot_I[B:],
                start_I[B:].astype(np.int32),
                (offset_I1[B:] - B).astype(np.int32),
                slot_R,
                position_R,
                offset_I1[1:][samples] - 1,
                np.array([row for row, _ in saves], dtype=np.int64),
                np.array([slot for _, slot in saves], dtype=np.int64),
                *self._new_pages(added),
            ]
        )
        if added:
            self._device_page_PA.view(-1).scatter_(0, views[-2], views[-1])
        return Batch(
            *views[:8],
            save_row_Y=views[11],
            save_slot_Y=views[12],
            position_3T=None if position_3T is None else self._rows.device.upload(position_3T),
            num_decode_pages=self._width(slot_I[:B]),
            num_prefill_pages=self._width(slot_I[B:]),
            has_unknown=num_unknown > 0,
            sampled=SampledRows(slot_R.tolist(), position_R.tolist(), *views[8:11]),
        )

    def inputs(self, batch: Batch, features: Features | None = None) -> StepInputs:
        """What is left to do, where the rows are. Fills in the batch's unknown tokens."""
        slot_B = batch.decode_slot_B
        if batch.has_unknown:
            token_id_B = batch.token_id_T[: len(slot_B)]
            last_token_B = self._rows.last_token_P.index_select(0, slot_B)
            token_id_B.copy_(torch.where(token_id_B < 0, last_token_B, token_id_B))
        decode_page_PM = self._device_page_PA[:, : batch.num_decode_pages]
        prefill_page_PM = self._device_page_PA[:, : batch.num_prefill_pages]
        return StepInputs(
            token_id_T=batch.token_id_T,
            position_T=batch.position_T,
            location_T=batch.location_T,
            decode_slot_B=slot_B,
            decode_length_B=batch.decode_length_B,
            decode_page_BM=decode_page_PM.index_select(0, slot_B),
            prefill_slot_S=batch.prefill_slot_S,
            prefill_start_S=batch.prefill_start_S,
            prefill_offset_S1=batch.prefill_offset_S1,
            prefill_page_SM=prefill_page_PM.index_select(0, batch.prefill_slot_S),
            position_3T=batch.position_3T,
            features=features,
            # Kernels that save nothing are launched without the two.
            save_row_Y=batch.save_row_Y if len(batch.save_row_Y) else None,
            save_slot_Y=batch.save_slot_Y if len(batch.save_slot_Y) else None,
        )

    def _new_pages(self, added: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Where in the flat table each new page goes, and the pages."""
        width = self._page_PA.shape[1]
        spans = [
            np.arange(slot * width + known, slot * width + self._num_pages[slot])
            for slot, known in added
        ]
        at_U = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
        return at_U, self._page_PA.reshape(-1)[at_U]

    def _width(self, slot_I: np.ndarray) -> int:
        """Of a table that holds all pages of these slots."""
        if self._has_fixed_width:
            return self._page_PA.shape[1]
        return max((self._num_pages[slot] for slot in slot_I.tolist()), default=0)


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Zeros: the scratch slot, the scratch page, and no tokens."""
    padded = np.zeros(length, dtype=array.dtype)
    padded[: len(array)] = array
    return padded
