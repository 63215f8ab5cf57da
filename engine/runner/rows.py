"""What the runner remembers per slot: how to sample there, and what was sampled last.

A row is filled by an `Admit` and stays until the next one for its slot. Numbers that every row has
are tensors indexed by slot, so that a batch needs one gather; what few requests ask for (penalties,
bias, bans) exists only in the rows that ask. The host keeps the facts that decide which work a
batch needs at all, so that no value is read back from the device to find that out.

A position decides the rest: the token drawn for position p has p - num_prompt_tokens outputs before
it, and (seed, p) is the counter of its random number. So nothing here counts, and a sequence that
resumes in another slot goes on as if it had never left.

What comes from the host is uploaded, and ids on the device pick tallies there, so that neither an
admission nor a sampled token makes the host wait for the device.

Ids at or above `num_real_tokens` are never sampled, so constraints on them are dropped here.

Letters: P slots, F numbers per row, V vocabulary (`num_real_tokens` wide), K rows with a tally.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import torch

from engine.plan import Admit
from engine.request import SamplingParams
from engine.runner.bad_words import BadWords
from engine.runner.device import CpuDevice, Device
from engine.runner.dry import Dry
from engine.runner.thinking import ThinkingBudget, ThinkingEnds
from kernels.sampling import MAX_CANDIDATES
from kernels.sampling.xtc import MAX_THRESHOLD

NUM_NUMBERS = 8
(  # columns of `number_PF`
    TEMPERATURE,
    TOP_P,
    MIN_P,
    REPETITION,
    PRESENCE,
    FREQUENCY,
    XTC_PROBABILITY,
    XTC_THRESHOLD,
) = range(NUM_NUMBERS)

FORCES = 100.0  # a logit bias from here up: nothing but the tokens that have it
BANS = -100.0  # a logit bias down to here: never

_TINY, _HUGE = 1e-30, 1e30  # what fp32 still divides by and multiplies with
_WORD = 0xFFFFFFFF


class Draw(Enum):
    """Which function of `kernels.sampling.draw` a row belongs to."""

    GREEDY = auto()
    TOP = auto()
    WIDE_TOP = auto()  # the same function, apart so that its many candidates slow nobody else
    NUCLEUS = auto()
    WHOLE = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """Facts of one slot that the host decides by. Absent constraints are None."""

    draw: Draw
    top_k: int
    num_prompt_tokens: int
    min_tokens: int
    num_logprobs: int | None
    num_prompt_logprobs: int
    prompt_id_T: torch.Tensor | None  # kept for prompt logprobs only
    tally: int | None  # place in the pool of tallies, of rows with penalties
    stop_id_N: torch.Tensor | None  # kept where `min_tokens` bans them
    bias_id_N: torch.Tensor | None
    bias_N: torch.Tensor | None
    banned_id_N: torch.Tensor | None
    forced_id_N: torch.Tensor | None
    allowed_id_N: torch.Tensor | None
    bad_words: BadWords | None
    excludes: bool  # has XTC
    dry: Dry | None
    thinking: ThinkingBudget | None
    has_grammar: bool


class Rows:
    """One row per slot, the scratch slot included."""

    def __init__(
        self,
        *,
        num_slots: int,
        num_real_tokens: int,
        token_bytes: Sequence[bytes] = (),
        device: Device | None = None,
    ) -> None:
        """`num_slots` counts the scratch slot. Every tensor lives on `device`, by default CPU.

        `token_bytes`: see `ThinkingEnds`.
        """
        self.device = device or CpuDevice()
        self.num_real_tokens = num_real_tokens
        at = self.device.torch_device
        self.number_PF = torch.zeros(num_slots, NUM_NUMBERS, dtype=torch.float64, device=at)
        self.top_k_P = torch.zeros(num_slots, dtype=torch.int64, device=at)
        self.key_P2 = torch.zeros(num_slots, 2, dtype=torch.int64, device=at)
        self.last_token_P = torch.zeros(num_slots, dtype=torch.int64, device=at)
        self._rows: list[Row | None] = [None] * num_slots
        self._token_bytes = token_bytes
        self._thinking_ends: dict[tuple[int, tuple[str, str] | None], ThinkingEnds] = {}
        # Twice the times a token was generated, plus 1 if the prompt has it.
        self.tally_KV = torch.zeros(0, num_real_tokens, dtype=torch.int32, device=at)
        self._free_tallies: list[int] = []

    def index(self, numbers: Sequence[int]) -> torch.Tensor:
        """Indices or ids, int64, on the device."""
        return self.device.upload(np.array(numbers, dtype=np.int64))

    def __getitem__(self, slot: int) -> Row:
        row = self._rows[slot]
        assert row is not None, f"slot {slot} was never admitted"
        return row

    def admit(self, admit: Admit) -> None:
        """Fill the row of `admit.slot`, whatever was in it."""
        slot, sampling = admit.slot, admit.sampling
        if (old := self._rows[slot]) and old.tally is not None:
            self._free_tallies.append(old.tally)
        self._rows[slot] = None
        top_k = sampling.top_k if 0 < sampling.top_k < self.num_real_tokens else 0
        numbers = np.array(
            (
                min(max(sampling.temperature, _TINY), _HUGE),
                sampling.top_p,
                sampling.min_p,
                min(max(sampling.repetition_penalty, _TINY), _HUGE),
                sampling.presence_penalty,
                sampling.frequency_penalty,
                sampling.xtc_probability,
                sampling.xtc_threshold,
            ),
            dtype=np.float64,
        )
        self.number_PF[slot] = self.device.upload(numbers)
        self.top_k_P[slot] = top_k or self.num_real_tokens
        self.key_P2[slot] = self.index((sampling.seed & _WORD, (sampling.seed >> 32) & _WORD))
        self.last_token_P[slot] = admit.ids[-1]
        self._rows[slot] = self._row(admit, top_k)

    def _row(self, admit: Admit, top_k: int) -> Row:
        sampling = admit.sampling
        repeats = sampling.repetition_penalty != 1
        counts = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        bias: dict[int, float] = {}  # of ids that are given twice, the sum
        for i, b in sampling.logit_bias:
            if BANS < b < FORCES and b and i < self.num_real_tokens:
                bias[i] = bias.get(i, 0.0) + b
        scores = sampling.num_prompt_logprobs is not None
        words = tuple(w for w in sampling.bad_words if w and w[-1] < self.num_real_tokens)
        return Row(
            draw=_draw(sampling, top_k),
            top_k=top_k,
            num_prompt_tokens=admit.num_prompt_tokens,
            min_tokens=sampling.min_tokens,
            num_logprobs=sampling.num_logprobs,
            num_prompt_logprobs=sampling.num_prompt_logprobs or 0,
            prompt_id_T=self.index(admit.ids[: admit.num_prompt_tokens]) if scores else None,
            tally=self._tally(admit) if repeats or counts else None,
            stop_id_N=self._ids(sampling.stop_token_ids) if sampling.min_tokens else None,
            bias_id_N=self._ids(bias),
            bias_N=self.device.upload(np.array([*bias.values()], np.float32)) if bias else None,
            banned_id_N=self._ids(i for i, b in sampling.logit_bias if b <= BANS),
            forced_id_N=self._ids(i for i, b in sampling.logit_bias if b >= FORCES),
            allowed_id_N=self._ids(sampling.allowed_token_ids or ()),
            bad_words=BadWords(words, admit.ids, self.device) if words else None,
            excludes=sampling.xtc_probability > 0 and sampling.xtc_threshold <= MAX_THRESHOLD,
            dry=self._dry(admit),
            thinking=self._thinking(admit),
            has_grammar=sampling.grammar is not None,
        )

    def _dry(self, admit: Admit) -> Dry | None:
        sampling = admit.sampling
        if sampling.dry_multiplier == 0 or sampling.dry_last_n == 0:
            return None
        return Dry(sampling, admit.ids, num_real_tokens=self.num_real_tokens, device=self.device)

    def _thinking(self, admit: Admit) -> ThinkingBudget | None:
        sampling = admit.sampling
        if sampling.thinking_budget is None:
            return None
        kind = (sampling.thinking_end_id, sampling.thinking_call_tags)
        ends = self._thinking_ends.get(kind)
        if ends is None:  # of a model there are two: with tools, and without
            ends = self._thinking_ends[kind] = ThinkingEnds(
                self._token_bytes, *kind, num_real_tokens=self.num_real_tokens, device=self.device
            )
        output_ids = admit.ids[admit.num_prompt_tokens :]
        return ThinkingBudget(sampling.thinking_budget, ends, output_ids, self.device)

    def _ids(self, ids: Iterable[int]) -> torch.Tensor | None:
        real = [i for i in ids if i < self.num_real_tokens]
        return self.index(real) if real else None

    def _tally(self, admit: Admit) -> int:
        """Count the ids known so far in a tally that nobody uses."""
        if not self._free_tallies:
            used = len(self.tally_KV)
            grown = max(1, 2 * used)
            more = self.tally_KV.new_zeros(grown - used, self.num_real_tokens)
            self.tally_KV = torch.cat((self.tally_KV, more))
            self._free_tallies.extend(range(used, grown))
        tally = self._free_tallies.pop()
        ids = np.array(admit.ids, dtype=np.int64)
        prompt, output = ids[: admit.num_prompt_tokens], ids[admit.num_prompt_tokens :]
        count_V = 2 * np.bincount(output, minlength=self.num_real_tokens).astype(np.int32)
        count_V[prompt[prompt < self.num_real_tokens]] += 1  # once, however often it is there
        self.tally_KV[tally] = self.device.upload(count_V)
        return tally

    @property
    def num_tallies(self) -> int:
        """Tallies that exist, in use or not: as many as were ever needed at once, doubled up."""
        return len(self.tally_KV)

    def record(self, slots: list[int], slot_R: torch.Tensor, token_R: torch.Tensor) -> None:
        """Remember that each slot, given twice, sampled its token."""
        self.last_token_P[slot_R] = token_R
        tallies = [
            (r, tally) for r, slot in enumerate(slots) if (tally := self[slot].tally) is not None
        ]
        if tallies:
            row_K, tally_K = (
                self.index([r for r, _ in tallies]),
                self.index([k for _, k in tallies]),
            )
            self.tally_KV[tally_K, token_R[row_K]] += 2
        for r, slot in enumerate(slots):
            row = self[slot]
            if row.bad_words is not None:
                row.bad_words.append(token_R[r : r + 1])
            if row.dry is not None:
                row.dry.append(token_R[r : r + 1])
            if row.thinking is not None:
                row.thinking.append(token_R[r : r + 1])


def _draw(sampling: SamplingParams, top_k: int) -> Draw:
    if sampling.temperature == 0:
        return Draw.GREEDY
    if top_k:
        return Draw.TOP if top_k <= MAX_CANDIDATES else Draw.WIDE_TOP
    return Draw.NUCLEUS if sampling.top_p < 1 else Draw.WHOLE
