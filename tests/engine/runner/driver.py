"""Drives a runner as a scheduler would: prefill in chunks, then decode one step ahead."""

import random
from collections.abc import Sequence

from engine.plan import PAGE_TOKENS, Admit, Slice, StepPlan, StepResult
from engine.request import SamplingParams, TokenLogprobs
from engine.runner.runner import Runner


class Life:
    """One sequence, its slot and its pages."""

    def __init__(
        self,
        name: str,
        slot: int,
        pages: Sequence[int],
        prompt: Sequence[int],
        sampling: SamplingParams,
        chunk: int = PAGE_TOKENS,
    ) -> None:
        self.name, self.slot, self.sampling, self.chunk = name, slot, sampling, chunk
        self.pages = tuple(pages)
        self.ids = list(prompt)
        self.num_prompt = len(self.ids)
        self.planned = 0
        self.scores: list[TokenLogprobs] = []
        self.entries: list[TokenLogprobs | None] = []
        self.admitted = False

    @property
    def output(self) -> list[int]:
        return self.ids[self.num_prompt :]

    @property
    def done(self) -> bool:
        return self.planned >= self.num_prompt + max(self.sampling.max_tokens - 1, 0)

    def admit(self) -> Admit:
        self.admitted = True
        return Admit(self.slot, self.num_prompt, tuple(self.ids), self.sampling)

    def preempt(self, slot: int, pages: Sequence[int]) -> None:
        self.slot, self.pages = slot, tuple(pages)
        self.planned, self.admitted = 0, False

    def take(self) -> Slice:
        start = self.planned
        decodes = start >= max(self.num_prompt, len(self.ids) - 1) and start > 0
        num_tokens = 1 if decodes else min(self.chunk, len(self.ids) - start)
        self.planned += num_tokens
        num_pages = -(-self.planned // PAGE_TOKENS)
        return Slice(
            request_id=self.name,
            epoch=0,
            slot=self.slot,
            start=start,
            num_tokens=num_tokens,
            token_ids=tuple(self.ids[start : self.planned]),
            pages=self.pages[:num_pages],
            decodes=decodes,
            samples=self.planned >= len(self.ids) and self.sampling.max_tokens > 0,
            scores_prompt=self.sampling.num_prompt_logprobs is not None and not decodes,
        )


def plan_step(lives: Sequence[Life]) -> StepPlan:
    admits = [life.admit() for life in lives if not life.admitted]
    slices = [life.take() for life in lives]
    slices.sort(key=lambda piece: not piece.decodes)
    return StepPlan(tuple(slices), tuple(admits))


def book(lives: Sequence[Life], plan: StepPlan, result: StepResult) -> None:
    by_name = {life.name: life for life in lives}
    for piece, token, entry in zip(plan.sampled, result.token_ids, result.logprobs, strict=True):
        by_name[piece.request_id].ids.append(token)
        by_name[piece.request_id].entries.append(entry)
    scored = [piece for piece in plan.slices if piece.scores_prompt]
    for piece, scores in zip(scored, result.prompt_logprobs, strict=True):
        by_name[piece.request_id].scores.extend(scores)


def run_all(runner: Runner, lives: Sequence[Life], rng: random.Random | None = None) -> None:
    """Drive everything to its end, always one step ahead; with `rng`, a random part per step."""
    before = None
    while active := [life for life in lives if not life.done]:
        if rng:
            active = rng.sample(active, rng.randint(1, len(active)))
        plan = plan_step(active)
        handle = runner.launch(plan)
        if before:
            book(lives, before[0], before[1].result())
        before = (plan, handle)
    if before:
        book(lives, before[0], before[1].result())
