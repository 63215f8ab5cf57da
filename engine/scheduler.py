"""Decides what the device computes next. Owns every sequence and the ids of every page and slot.

A step is planned, launched, then committed, and step N+1 is planned while step N still runs. Ids
freed while a step runs may be handed out at once: the device runs steps in order. One rule covers
cancel, preemption, failure and overrun alike: a late result counts only for a sequence that still
runs in the same epoch.

Admission is exact: a sequence starts when a slot and the pages of all its known tokens are free, so
only decoding grows. Growth that finds no page preempts the youngest, which keeps its tokens and its
place in the queue and later recomputes. After `MAX_PREEMPTIONS` a sequence comes back only with the
pages of its whole life in hand: it cannot grow, is no victim any more, and so ends.

Invariants (`check` asserts them):
- each page and slot is free or held by exactly one sequence;
- a sequence is in `_waiting` or `_running`, never both, and holds nothing while it waits;
- nothing here touches a tensor, reads a clock or awaits.
"""

from bisect import insort

from engine.errors import QueueFull, RequestTooLong
from engine.memory import PagePool, SlotPool, pages_for
from engine.plan import PAGE_TOKENS, SCRATCH, Admit, Slice, StepPlan, StepResult
from engine.request import FinishReason, Request, TokenDelta, TokenLogprobs
from engine.sequence import Sequence

MAX_PREEMPTIONS = 4


class Scheduler:
    """Turns submitted requests into step plans, and step results into token deltas."""

    def __init__(
        self, pages: PagePool, slots: SlotPool, *, max_step_tokens: int, max_waiting: int
    ) -> None:
        """`max_step_tokens` is at least slots + PAGE_TOKENS: decodes never starve a prefill."""
        assert max_step_tokens >= slots.num_slots + PAGE_TOKENS
        self._pages = pages
        self._slots = slots
        self._max_step_tokens = max_step_tokens
        self._max_waiting = max_waiting
        self._waiting: list[Sequence] = []  # by order
        self._running: dict[str, Sequence] = {}  # by admission
        self._num_arrived = 0
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RequestTooLong if it can never run, QueueFull at the bound."""
        if pages_for(request.max_total_tokens) > self._pages.num_pages:
            raise RequestTooLong(
                f"prompt and max_tokens together are {request.max_total_tokens} tokens, "
                f"and the KV cache holds {self._pages.num_pages * PAGE_TOKENS}"
            )
        if sum(not seq.num_preemptions for seq in self._waiting) >= self._max_waiting:
            raise QueueFull(f"{self._max_waiting} requests are waiting already")
        self._num_arrived += 1
        insort(self._waiting, Sequence.of(request, self._num_arrived), key=lambda seq: seq.order)

    def cancel(self, request_id: str) -> None:
        """Forget a request. Unknown ids are fine: it may have finished a moment ago."""
        if seq := self._running.pop(request_id, None):
            self._release(seq)
        else:
            self._waiting = [seq for seq in self._waiting if seq.request.id != request_id]

    def plan(self) -> StepPlan | None:
        """Spend one step's token budget: decodes, then running prefills, then the queue."""
        slices: list[Slice] = []
        admits: list[Admit] = []
        for seq in sorted(self._running.values(), key=lambda seq: seq.order):
            if seq.may_decode and self._grow(seq):
                slices.append(self._take(seq, 1))
        budget = self._max_step_tokens - len(slices)
        for seq in self._running.values():
            if seq.prefills and (num_tokens := _chunk(seq, budget)):
                slices.append(self._take(seq, num_tokens))
                budget -= num_tokens
        while self._waiting and (seq := self._admit(budget)):
            admits.append(
                Admit(
                    seq.slot,
                    seq.num_prompt,
                    tuple(seq.ids),
                    sampling=seq.request.sampling,
                    media=seq.request.media,
                )
            )
            num_tokens = _chunk(seq, budget)
            slices.append(self._take(seq, num_tokens))
            budget -= num_tokens
        return StepPlan(tuple(slices), tuple(admits)) if slices else None

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenDelta]:
        """Book a finished step and say what became known."""
        deltas: list[TokenDelta] = []
        sampled = iter(zip(result.token_ids, result.logprobs, strict=True))
        scored = iter(result.prompt_logprobs)
        for part in plan.slices:
            token_id, logprobs = next(sampled) if part.samples else (None, None)
            prompt_logprobs = next(scored) if part.scores_prompt else ()
            seq = self._running.get(part.request_id)
            if seq is None or seq.epoch != part.epoch:
                continue  # finished, cancelled or preempted while the step was in flight
            seq.prompt_logprobs.extend(prompt_logprobs)
            if token_id is not None:
                seq.ids.append(token_id)
                finish = seq.finish_after(token_id)
            elif part.start + part.num_tokens == seq.request.max_total_tokens:
                finish = FinishReason.LENGTH  # max_tokens 0: the prompt is scored
            else:
                continue
            if finish is not None:
                self._release(self._running.pop(part.request_id))
            deltas.append(
                TokenDelta(
                    request_id=part.request_id,
                    token_ids=() if token_id is None else (token_id,),
                    finish=finish,
                    logprobs=() if logprobs is None else (logprobs,),
                    prompt_logprobs=_take_prompt_logprobs(seq),
                )
            )
            seq.reported = True
        return deltas

    def fail(self, plan: StepPlan) -> str | None:
        """The step raised. Give up its youngest sequence, and recompute the others it touched.

        Their states may be half written, so none is worth keeping. Returns the id of the request
        that was given up, or None if all had ended already.
        """
        touched = [
            seq
            for part in plan.slices
            if (seq := self._running.get(part.request_id)) and seq.epoch == part.epoch
        ]
        if not touched:
            return None
        victim = max(touched, key=lambda seq: seq.order)
        for seq in touched:
            if seq is victim:
                self._release(self._running.pop(seq.request.id))
            else:
                self._preempt(seq)
        return victim.request.id

    def check(self) -> None:
        """Assert the invariants in the module's docstring."""
        running = list(self._running.values())
        self._pages.check([page for seq in running for page in seq.pages])
        self._slots.check([seq.slot for seq in running])
        assert not {seq.request.id for seq in self._waiting} & set(self._running)
        assert all(seq.slot == SCRATCH and not seq.pages for seq in self._waiting)
        assert all(
            a.order < b.order for a, b in zip(self._waiting, self._waiting[1:], strict=False)
        )
        assert all(len(seq.pages) >= pages_for(seq.num_planned) for seq in running)

    def _admit(self, budget: int) -> Sequence | None:
        """Start the first in the queue, if a chunk fits the budget and all of it the memory."""
        seq = self._waiting[0]
        seq.prefill_end = len(seq.ids)
        whole_life = seq.num_preemptions >= MAX_PREEMPTIONS
        num_pages = pages_for(seq.request.max_total_tokens if whole_life else len(seq.ids))
        # Each running sequence may want a page within its next 64 tokens: admitting into those
        # would only preempt again.
        growth = len(self._running)
        if (
            not _chunk(seq, budget)
            or self._slots.num_free == 0
            or self._pages.num_free < num_pages + growth
        ):
            return None
        del self._waiting[0]
        seq.slot = self._slots.acquire()
        seq.pages = self._pages.acquire(num_pages)
        self._running[seq.request.id] = seq
        return seq

    def _grow(self, seq: Sequence) -> bool:
        """Find room for a token, preempting the youngest until it fits; False if that was `seq`."""
        if seq.request.id not in self._running:
            return False
        if len(seq.pages) >= pages_for(seq.num_planned + 1):
            return True
        while self._pages.num_free == 0:
            victims = (s for s in self._running.values() if s.num_preemptions < MAX_PREEMPTIONS)
            youngest = max(victims, key=lambda seq: seq.order)
            self._preempt(youngest)
            if youngest is seq:
                return False
        seq.pages += self._pages.acquire(1)
        return True

    def _preempt(self, seq: Sequence) -> None:
        del self._running[seq.request.id]
        self._release(seq)
        seq.give_up_progress()
        seq.num_preemptions += 1
        self.num_preemptions += 1
        insort(self._waiting, seq, key=lambda seq: seq.order)

    def _release(self, seq: Sequence) -> None:
        self._pages.release(seq.pages)
        self._slots.release(seq.slot)
        seq.pages = []
        seq.slot = SCRATCH

    def _take(self, seq: Sequence, num_tokens: int) -> Slice:
        start = seq.num_planned
        end = start + num_tokens
        part = Slice(
            request_id=seq.request.id,
            epoch=seq.epoch,
            slot=seq.slot,
            start=start,
            num_tokens=num_tokens,
            token_ids=tuple(seq.ids[start:end]),  # empty: the runner has it already
            pages=tuple(seq.pages),
            decodes=not seq.prefills,
            samples=end >= len(seq.ids) and end < seq.request.max_total_tokens,
            scores_prompt=seq.scores_prompt,
        )
        seq.num_planned = end
        return part


def _chunk(seq: Sequence, budget: int) -> int:
    """Tokens of the next prefill slice: to the end of what is known, else to the page grid."""
    left = seq.prefill_end - seq.num_planned
    if left <= budget:
        return left
    return max(0, (seq.num_planned + budget) // PAGE_TOKENS * PAGE_TOKENS - seq.num_planned)


def _take_prompt_logprobs(seq: Sequence) -> tuple[TokenLogprobs | None, ...]:
    if seq.request.sampling.num_prompt_logprobs is None or seq.reported:
        return ()
    scores = (None, *seq.prompt_logprobs)
    seq.prompt_logprobs.clear()
    return scores
