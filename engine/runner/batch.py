"""From a step plan to the tensors the model reads.

A sequence's pages only grow between two admits, so its row of the page table is kept per slot and
only new pages are copied. All else is array arithmetic over the slices: the Python work of a step
is a constant per slice, however many tokens it has.

Letters as in `engine/model/inputs.py`; I is all slices of the plan, B + S of them.
"""

import numpy as np
import torch

from engine.model.inputs import StepInputs
from engine.plan import PAGE_TOKENS, StepPlan
from engine.runner.rows import Rows

_UNKNOWN = 0  # stands for a token that only the device knows


class BatchBuilder:
    """Owns the page tables. Slices of one plan that share a slot must share their pages."""

    def __init__(self, rows: Rows, *, num_slots: int) -> None:
        """`num_slots` counts the scratch slot."""
        self._rows = rows
        self._page_PM = np.zeros((num_slots, 16), dtype=np.int32)
        self._num_pages = [0] * num_slots

    def forget(self, slot: int) -> None:
        """The slot's next slice brings pages of another sequence, or of another epoch."""
        self._page_PM[slot, : self._num_pages[slot]] = 0
        self._num_pages[slot] = 0

    def build(self, plan: StepPlan) -> StepInputs:
        """The plan has at least one slice, and the slots of its admits are forgotten."""
        ids: list[int] = []
        unknown: list[int] = []
        for part in plan.slices:
            if not part.token_ids:
                unknown.append(len(ids))
            ids.extend(part.token_ids or (_UNKNOWN,))
            if len(part.pages) > self._num_pages[part.slot]:
                self._append_pages(part.slot, part.pages)

        num_decodes = sum(part.decodes for part in plan.slices)
        assert all(part.decodes for part in plan.slices[:num_decodes]), "decodes come first"
        assert len(ids) == plan.num_tokens, "token ids do not fit the slices"
        slot_I = np.array([part.slot for part in plan.slices], dtype=np.int64)
        start_I = np.array([part.start for part in plan.slices], dtype=np.int64)
        length_I = np.array([part.num_tokens for part in plan.slices], dtype=np.int64)
        offset_I1 = np.zeros(len(slot_I) + 1, dtype=np.int64)
        length_I.cumsum(out=offset_I1[1:])

        slot_T = slot_I.repeat(length_I)
        position_T = np.arange(len(ids)) + (start_I - offset_I1[:-1]).repeat(length_I)
        page_T = self._page_PM[slot_T, position_T // PAGE_TOKENS]
        location_T = page_T.astype(np.int64) * PAGE_TOKENS + position_T % PAGE_TOKENS

        token_id_T = self._tensor(np.array(ids, dtype=np.int64))
        if unknown:
            row_U = self._tensor(np.array(unknown, dtype=np.int64))
            slot_U = self._tensor(slot_T[unknown])
            token_id_T[row_U] = self._rows.last_token_P[slot_U]
        B = num_decodes
        return StepInputs(
            token_id_T=token_id_T,
            position_T=self._tensor(position_T),
            location_T=self._tensor(location_T),
            decode_slot_B=self._tensor(slot_I[:B]),
            decode_length_B=self._tensor((start_I[:B] + 1).astype(np.int32)),
            decode_page_BM=self._tensor(self._pages(slot_I[:B])),
            prefill_slot_S=self._tensor(slot_I[B:]),
            prefill_start_S=self._tensor(start_I[B:].astype(np.int32)),
            prefill_offset_S1=self._tensor((offset_I1[B:] - B).astype(np.int32)),
            prefill_page_SM=self._tensor(self._pages(slot_I[B:])),
        )

    def _append_pages(self, slot: int, pages: tuple[int, ...]) -> None:
        capacity = self._page_PM.shape[1]
        if len(pages) > capacity:
            grown = max(2 * capacity, len(pages))
            self._page_PM = np.pad(self._page_PM, ((0, 0), (0, grown - capacity)))
        known = self._num_pages[slot]
        self._page_PM[slot, known : len(pages)] = pages[known:]
        self._num_pages[slot] = len(pages)

    def _pages(self, slot_I: np.ndarray) -> np.ndarray:
        """Tables as wide as the longest of these slots, and the rest of each row page 0."""
        width = max((self._num_pages[slot] for slot in slot_I.tolist()), default=0)
        return self._page_PM[slot_I, :width]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._rows.device)
