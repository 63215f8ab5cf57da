"""The step: what the scheduler tells the runner to compute, and what the runner answers.

A plan is a ragged batch of slices. Prefill chunks and decodes mix freely. Order of events in one
step: `admits` fill the runner's per-slot rows and copy saved states, then the slices run and save
states, then every slice with `samples`
draws one token, which the runner also keeps per slot, because the next plan may continue a sequence
whose last token the host does not know yet.
"""

from dataclasses import dataclass

from engine.request import Media, SamplingParams, TokenLogprobs

PAGE_TOKENS = 64  # KV page size and DeltaNet chunk: one absolute grid from the sequence start
SCRATCH = 0  # page 0 and slot 0 belong to padding rows and to nobody else


class DeviceLost(Exception):
    """The device is beyond recovery: no step after this one can go well."""


@dataclass(frozen=True, slots=True)
class Admit:
    """A sequence starts, or resumes after a preemption, in `slot`.

    The state in the slot is whatever its last owner left. With a `saved_slot` the state there is
    copied, and the sequence's first slice starts where that was saved; without one its first slice
    has `start` 0, and a slice that starts at 0 starts from zero state.
    """

    slot: int
    num_prompt_tokens: int
    ids: tuple[int, ...]  # prompt, then the output known so far (for penalties and `bad_words`)
    sampling: SamplingParams
    media: tuple[Media, ...] = ()  # in order; the placeholders are among the prompt's ids
    saved_slot: int = SCRATCH


@dataclass(frozen=True, slots=True)
class Slice:
    """`num_tokens` consecutive tokens of one sequence from position `start`.

    A prefill slice starts on the grid of `PAGE_TOKENS` and ends on it, or at the known ids' end.
    """

    request_id: str
    epoch: int
    slot: int  # recurrent-state slot, and the runner's row for this sequence
    start: int
    num_tokens: int
    token_ids: tuple[int, ...]  # empty: one token, the last one sampled in `slot`
    pages: tuple[int, ...]  # every KV page of the sequence so far, these tokens' included
    decodes: bool  # one generated token, continuing a state; else prefill
    samples: bool  # draw the next token from the last position
    scores_prompt: bool = False  # report prompt logprobs of these positions' successors
    # (end, slot): the state after the tokens before `end`, a page's end in this prefill slice, is
    # saved in `slot`, which is of no sequence.
    saves: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    slices: tuple[Slice, ...]  # decodes first
    admits: tuple[Admit, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(part.num_tokens for part in self.slices)

    @property
    def sampled(self) -> tuple[Slice, ...]:
        return tuple(part for part in self.slices if part.samples)


@dataclass(frozen=True, slots=True)
class StepResult:
    token_ids: tuple[int, ...]  # one per slice in `plan.sampled`
    logprobs: tuple[TokenLogprobs | None, ...]  # one per slice in `plan.sampled`; None: not asked
    # For each slice with `scores_prompt`, in order: the logprobs of
    # ids[start + 1 : start + num_tokens + 1], as far as these are prompt tokens.
    prompt_logprobs: tuple[tuple[TokenLogprobs, ...], ...] = ()
    # Requests that cannot go on, because their grammar ran into a limit; their tokens mean nothing.
    failed: tuple[str, ...] = ()
    unencoded: tuple[str, ...] = ()  # the same, because a picture of theirs could not be encoded


# A step of no request, on scratch memory alone: whether the device can still compute one.
PROBE = StepPlan(
    slices=(
        Slice(
            request_id="",
            epoch=0,
            slot=SCRATCH,
            start=0,
            num_tokens=1,
            token_ids=(0,),
            pages=(SCRATCH,),
            decodes=False,
            samples=True,
        ),
    ),
    admits=(
        Admit(
            SCRATCH,
            num_prompt_tokens=1,
            ids=(0,),
            sampling=SamplingParams(max_tokens=1, seed=0, temperature=0.0),
        ),
    ),
)
