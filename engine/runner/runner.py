"""Runs step plans: the only place where rows, batch, model and sampler meet.

`step` is the one function for warm-up and for serving. `launch` queues it on the runner's own
thread, where steps run in order, so that the host can plan step N + 1 while step N computes. Rows,
page tables and caches belong to that thread once the first step was launched.

lm_head sees only the rows that someone asks about, at most `LOGITS_ROWS` at a time: one fp32 row of
the real vocabulary is 1 MB.

Letters: T tokens of the step, R rows with logits, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Protocol

import torch

from engine.grammar import GrammarError, GrammarRows
from engine.model.inputs import Caches, StepInputs
from engine.plan import Admit, Slice, StepPlan, StepResult
from engine.request import TokenLogprobs
from engine.runner.batch import BatchBuilder
from engine.runner.rows import Rows
from engine.runner.sampler import Masks, sample, score

LOGITS_ROWS = 64


class Model(Protocol):
    def forward(self, inputs: StepInputs, caches: Caches, /) -> torch.Tensor:
        """hidden_TD; advances the caches."""
        ...

    def logits(self, hidden_RD: torch.Tensor, /) -> torch.Tensor:
        """logits_RV in fp32, in a tensor of their own."""
        ...


class Runner:
    def __init__(
        self,
        model: Model,
        caches: Caches,
        *,
        num_slots: int,
        num_real_tokens: int,
        grammars: GrammarRows | None = None,
    ) -> None:
        """`num_slots` counts the scratch slot; ids from `num_real_tokens` on are never sampled.

        Without `grammars`, no request may have one.
        """
        self._model = model
        self._caches = caches
        self._rows = Rows(num_slots=num_slots, num_real_tokens=num_real_tokens)
        self._grammars = grammars
        self._batches = BatchBuilder(self._rows, num_slots=num_slots)
        self._thread = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="runner",
            # OpenMP keeps the number per thread: a new one would start with its own default.
            initializer=torch.set_num_threads,
            initargs=(torch.get_num_threads(),),
        )

    def launch(self, plan: StepPlan) -> Future[StepResult]:
        """Queue a step. What goes wrong in it is raised by `result()` of what this returns."""
        return self._thread.submit(self.step, plan)

    def stop(self) -> None:
        """Drop the steps that have not begun, and wait for the one that has."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> StepResult:
        """Compute one step here and now. Not while a launched one may be running."""
        for admit in plan.admits:  # this cannot fail, so no step ever sees another owner's pages
            self._batches.forget(admit.slot)
        for admit in plan.admits:
            self._rows.admit(admit)
            self._admit_grammar(admit)
        if not plan.slices:
            return StepResult(token_ids=(), logprobs=())
        hidden_TD = self._model.forward(self._batches.build(plan), self._caches)
        ends = list(accumulate(part.num_tokens for part in plan.slices))
        # Scores first: they read the rows as the plan found them.
        scored = [
            self._score_prompt(part, hidden_TD[end - part.num_tokens : end])
            for part, end in zip(plan.slices, ends, strict=True)
            if part.scores_prompt
        ]
        sampled = [(part, end - 1) for part, end in zip(plan.slices, ends, strict=True)]
        sampled = [(part, row) for part, row in sampled if part.samples]
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        failed: list[str] = []
        for i in range(0, len(sampled), LOGITS_ROWS):
            tokens, entries = self._sample(hidden_TD, sampled[i : i + LOGITS_ROWS], failed)
            token_ids += tokens
            logprobs += entries
        return StepResult(tuple(token_ids), tuple(logprobs), tuple(scored), tuple(failed))

    def _admit_grammar(self, admit: Admit) -> None:
        if self._grammars is None:
            assert admit.sampling.grammar is None, "this runner has no grammars"
            return
        output_ids = admit.ids[admit.num_prompt_tokens :]
        self._grammars.admit(admit.slot, admit.sampling.grammar, output_ids)

    def _sample(
        self, hidden_TD: torch.Tensor, sampled: Sequence[tuple[Slice, int]], failed: list[str]
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Draw one token for each (slice, its last row). Adds to `failed` who cannot go on."""
        hidden_RD = hidden_TD[torch.tensor([row for _, row in sampled], device=hidden_TD.device)]
        slots = [part.slot for part, _ in sampled]
        positions = [part.start + part.num_tokens for part, _ in sampled]
        logits_RV = self._model.logits(hidden_RD)
        masks = self._masks([part for part, _ in sampled], failed)
        tokens, entries = sample(self._rows, logits_RV, slots, positions, masks)
        if self._grammars is not None:
            for slot, token_id in zip(slots, tokens, strict=True):
                self._grammars.advance(slot, token_id)
        return tokens, entries

    def _masks(self, parts: Sequence[Slice], failed: list[str]) -> Masks:
        """Grammar masks by row: they were computed while the model ran."""
        masks: Masks = {}
        if self._grammars is not None:
            for row, part in enumerate(parts):
                try:
                    mask = self._grammars.mask(part.slot)
                except GrammarError:
                    failed.append(part.request_id)
                    continue
                if mask is not None:
                    masks[row] = mask
        return masks

    def _score_prompt(self, part: Slice, hidden_TD: torch.Tensor) -> tuple[TokenLogprobs, ...]:
        """Logprobs of the tokens that follow the slice's own, as far as the prompt goes."""
        row = self._rows[part.slot]
        assert row.prompt_id_T is not None, "no prompt logprobs were asked for"
        successor_T = row.prompt_id_T[part.start + 1 : part.start + part.num_tokens + 1]
        scores: list[TokenLogprobs] = []
        for i in range(0, len(successor_T), LOGITS_ROWS):
            token_R = successor_T[i : i + LOGITS_ROWS].to(hidden_TD.device)
            logits_RV = self._model.logits(hidden_TD[i : i + len(token_R)])
            num_top = [row.num_prompt_logprobs] * len(token_R)
            scores += score(self._rows, logits_RV, token_R, num_top)
        return tuple(scores)
