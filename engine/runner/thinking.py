"""The thinking budget of one sequence: at one position, and only there, the end may be forced.

That position is the prompt's end plus the budget: `budget` tokens were generated before it. If none
of them ended the thinking, the token there does. So all that has to be remembered is whether one
did, and that is read from the tokens again when a sequence resumes.
"""

import numpy as np
import torch

from engine.runner.device import Device


class ThinkingBudget:
    def __init__(
        self,
        budget: int,
        end_ids: tuple[int, ...],
        output_ids: tuple[int, ...],
        device: Device,
    ) -> None:
        """`end_ids` is not empty, and its first is what is forced."""
        self._budget = budget
        self._forced_id = end_ids[0]
        self._end_id_N = device.upload(np.array(end_ids, dtype=np.int64))
        thinks = not set(end_ids) & set(output_ids)
        self._thinks = torch.full((), thinks, device=device.torch_device)

    def append(self, token_1: torch.Tensor) -> None:
        self._thinks = self._thinks & (token_1 != self._end_id_N).all()

    def force(self, logits_V: torch.Tensor, num_output_tokens: int) -> None:
        """Leave nothing but the end, if it is time and the sequence still thinks."""
        if num_output_tokens != self._budget:
            return
        forced_V = torch.full_like(logits_V, -torch.inf)
        forced_V[self._forced_id] = 0
        logits_V.copy_(torch.where(self._thinks, forced_V, logits_V))
