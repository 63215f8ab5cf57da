"""The thinking budget of one sequence: at one position the end is forced.

That position is the prompt's end plus the budget: `budget` tokens were generated before it. If none
of them ended the thinking, the token there does. So all that has to be remembered is whether one
did, and that is read from the tokens again when a sequence resumes.

A grammar that covers the thinking, too, may not allow the end there: in the midst of a call that
other tokens spell. Then the end comes at the first position where it is allowed.
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
        *,
        has_grammar: bool,
    ) -> None:
        """`end_ids` is not empty, and its first is what is forced."""
        self._budget = budget
        self._has_grammar = has_grammar
        self._forced_id = end_ids[0]
        self._end_id_N = device.upload(np.array(end_ids, dtype=np.int64))
        thinks = not set(end_ids) & set(output_ids)
        self._thinks = torch.full((), thinks, device=device.torch_device)

    def append(self, token_1: torch.Tensor) -> None:
        self._thinks = self._thinks & (token_1 != self._end_id_N).all()

    def is_due(self, num_output_tokens: int) -> bool:
        """Whether the end may have to come now."""
        late = num_output_tokens - self._budget
        return late >= 0 if self._has_grammar else late == 0

    def comes(self, logits_V: torch.Tensor) -> torch.Tensor:
        """Whether the end has to come [bool], of logits that only a grammar has masked."""
        return self._thinks & (logits_V[self._forced_id] > -torch.inf)

    def force(self, logits_V: torch.Tensor, comes: torch.Tensor) -> None:
        """Leave nothing but the end, if it comes."""
        forced_V = torch.full_like(logits_V, -torch.inf)
        forced_V[self._forced_id] = 0
        logits_V.copy_(torch.where(comes, forced_V, logits_V))
