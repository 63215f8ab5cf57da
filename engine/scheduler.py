"""Decides what the device computes next. Owns every sequence and the ids of every page and slot.

A step is planned, launched, then committed, and step N+1 is planned while step N still runs. Ids
freed while a step runs may be handed out at once: the device runs steps in order. One rule covers
cancel, preemption, failure and overrun alike: a late result counts only for a sequence that still
runs in the same epoch.

Admission is exact: a sequence starts when a slot and the pages of all its known tokens are to be
had, so only decoding grows. Growth that finds no page preempts the youngest, which keeps its tokens
and its place in the queue and later recomputes. After `MAX_PREEMPTIONS` a sequence comes back only
with the pages of its whole life in hand: it cannot grow, is no victim any more, and so ends.

A step that raised costs its sequences what they had computed, and `suspects` finds out which of
them is guilty: that one ends, the others recompute. Meanwhile those not on trial hold still, and if
they leave no room for the trial they give way.

A sequence begins where the longest cached prefix of its prompt ends. If a running one is about to
save a longer prefix, it waits for that: prompts that arrive together are computed once. A state is
published when the step that saved it is committed, so no other step ever builds on one that failed.

Invariants (`check` asserts them):
- each page and slot is free, held by exactly one sequence, or in the prefix cache;
- a sequence is in `_waiting` or `_running`, never both, and holds nothing while it waits;
- who waits for a state waits for one that a running sequence will publish or give up;
- nothing here touches a tensor, reads a clock or awaits.
"""

from bisect import insort

from engine.errors import QueueFull, RequestTooLong
from engine.memory import (
    Lookup,
    PageKeys,
    PagePool,
    PrefixCache,
    SlotPool,
    pages_for,
    snapshot_points,
)
from engine.plan import PAGE_TOKENS, SCRATCH, Admit, Slice, StepPlan, StepResult
from engine.request import FinishReason, Request, TokenDelta, TokenLogprobs
from engine.sequence import Sequence
from engine.suspects import Suspects

MAX_PREEMPTIONS = 4


class Scheduler:
    """Turns submitted requests into step plans, and step results into token deltas."""

    def __init__(
        self,
        pages: PagePool,
        slots: SlotPool,
        cache: PrefixCache,
        *,
        max_step_tokens: int,
        max_waiting: int,
        preempts: bool = True,
    ) -> None:
        """`max_step_tokens` is at least slots + PAGE_TOKENS: decodes never starve a prefill.

        Without `preempts` a sequence is admitted with the pages of its whole life.
        """
        assert max_step_tokens >= slots.num_slots + PAGE_TOKENS
        self._pages = pages
        self._slots = slots
        self._cache = cache
        self._keys = PageKeys()
        self._coming: set[bytes] = set()  # of states that running sequences will publish
        self._saving: set[int] = set()  # slots that steps in flight write states to
        self._max_step_tokens = max_step_tokens
        self._max_waiting = max_waiting
        self._preempts = preempts
        self._waiting: list[Sequence] = []  # by order
        self._running: dict[str, Sequence] = {}  # by admission
        self._suspects = Suspects()
        self._num_arrived = 0
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_pages_used(self) -> int:
        """Pages of running sequences; what only the cache has is free to them."""
        return self._pages.num_used - self._cache.num_idle

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
        num_waiting = sum(seq.epoch == 0 for seq in self._waiting)
        if request.seats and num_waiting + request.seats > self._max_waiting:
            raise QueueFull(f"{self._max_waiting} requests are waiting already")
        self._num_arrived += 1
        # Who scores a prompt computes all of it.
        caches = self._cache.is_on and request.sampling.num_prompt_logprobs is None
        keys = self._keys.of(request) if caches else []
        seq = Sequence.of(request, self._num_arrived, keys)
        insort(self._waiting, seq, key=lambda seq: seq.order)

    def cancel(self, request_id: str) -> None:
        """Forget a request. Unknown ids are fine: it may have finished a moment ago."""
        self._suspects.clear(request_id)
        if seq := self._running.pop(request_id, None):
            self._release(seq)
        else:
            self._waiting = [seq for seq in self._waiting if seq.request.id != request_id]

    def follows(self, request_id: str) -> bool:
        """Whether a request waits for a running one that computes the beginning of its prompt."""
        return any(seq.request.id == request_id and self._follows(seq) for seq in self._waiting)

    def plan(self) -> StepPlan | None:
        """Spend one step's token budget: decodes, then running prefills, then the queue."""
        slices: list[Slice] = []
        admits: list[Admit] = []
        for seq in sorted(self._running.values(), key=lambda seq: seq.order):
            if seq.may_decode and self._may_run(seq) and self._grow(seq):
                slices.append(self._take(seq, 1))
        budget = self._max_step_tokens - len(slices)
        for seq in self._running.values():
            if not (seq.prefills and self._may_run(seq)):
                continue
            if num_tokens := _chunk(seq, budget):
                slices.append(self._take(seq, num_tokens))
                budget -= num_tokens
        while (seq := self._next_waiting()) and (admit := self._admit(seq, budget)):
            admits.append(admit)
            num_tokens = _chunk(seq, budget)
            slices.append(self._take(seq, num_tokens))
            budget -= num_tokens
        if not any(self._may_run(seq) for seq in self._running.values()):
            self._make_way()
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
                self._drop_saves(part)
                continue  # finished, cancelled or preempted while the step was in flight
            self._publish(seq, part)
            self._suspects.passed(part.request_id, part.end)
            seq.prompt_logprobs.extend(prompt_logprobs)
            if token_id is not None:
                seq.ids.append(token_id)
                finish = seq.finish_after(token_id)
            elif part.end == seq.request.max_total_tokens:
                finish = FinishReason.LENGTH  # max_tokens 0: the prompt is scored
            else:
                continue
            num_saved = seq.num_saved
            if finish is not None:
                self._release(self._running.pop(part.request_id))
                self._suspects.clear(part.request_id)
            deltas.append(
                TokenDelta(
                    request_id=part.request_id,
                    token_ids=() if token_id is None else (token_id,),
                    finish=finish,
                    logprobs=() if logprobs is None else (logprobs,),
                    prompt_logprobs=_take_prompt_logprobs(seq),
                    num_cached_tokens=0 if seq.reported else seq.num_cached,
                    num_saved_tokens=0 if seq.reported else num_saved,
                )
            )
            seq.reported = True
        return deltas

    def fail(self, plan: StepPlan) -> str | None:
        """The step raised. Recompute the sequences it touched: their states may be half written.

        Returns the id of the request that is given up because it is guilty, if one is found to be.
        """
        ends: dict[str, int] = {}
        for part in plan.slices:
            self._drop_saves(part)
            seq = self._running.get(part.request_id)
            if seq is not None and seq.epoch == part.epoch:
                ends[part.request_id] = part.end
                self._set_back(seq)
        guilty = self._suspects.accuse(ends, alone=len(plan.slices) == 1)
        if guilty is not None:
            self.cancel(guilty)
        return guilty

    def check(self) -> None:
        """Assert the invariants in the module's docstring."""
        running = list(self._running.values())
        cached = self._cache.check([seq.path for seq in running], sorted(self._saving))
        self._pages.check([*cached, *(page for seq in running for page in seq.own_pages)])
        self._slots.check([seq.slot for seq in running])
        coming = [key for seq in running for key in seq.coming]
        assert sorted(coming) == sorted(self._coming)
        assert not any(seq.path or seq.coming for seq in self._waiting)
        assert not {seq.request.id for seq in self._waiting} & set(self._running)
        assert all(seq.slot == SCRATCH and not seq.pages for seq in self._waiting)
        assert all(
            a.order < b.order for a, b in zip(self._waiting, self._waiting[1:], strict=False)
        )
        assert all(len(seq.pages) >= pages_for(seq.num_planned) for seq in running)
        self._suspects.check({seq.request.id for seq in (*self._waiting, *running)})

    def _may_run(self, seq: Sequence) -> bool:
        return self._suspects.may_run(seq.request.id)

    def _make_way(self) -> None:
        """Whoever is on trial found no room, so all that hold still give theirs up."""
        for seq in tuple(self._running.values()):
            self._set_back(seq)

    def _next_waiting(self) -> Sequence | None:
        """The first in the queue that may run and waits for nobody's state."""
        if self._slots.num_free == 0:
            return None
        ready = (seq for seq in self._waiting if self._may_run(seq) and not self._follows(seq))
        return next(ready, None)

    def _follows(self, seq: Sequence) -> bool:
        """A longer prefix of it than the cache has is being computed right now."""
        if not self._coming or not seq.keys:
            return False
        hit = self._cache.find(seq.keys)
        behind = seq.keys[hit.depth if hit else 0 :]
        return not self._coming.isdisjoint(behind)

    def _admit(self, seq: Sequence, budget: int) -> Admit | None:
        """Start a sequence of the queue, if a chunk fits the budget and all of it the memory."""
        hit = self._cache.find(seq.keys)
        num_hit = hit.depth if hit else 0
        seq.num_planned = num_hit * PAGE_TOKENS
        seq.prefill_end = len(seq.ids)
        if not _chunk(seq, budget):
            return None
        whole_life = not self._preempts or seq.num_preemptions >= MAX_PREEMPTIONS
        num_pages = pages_for(seq.request.max_total_tokens if whole_life else len(seq.ids))
        # Each running sequence may want a page within its next 64 tokens: admitting into those
        # would only preempt again.
        growth = len(self._running) if self._preempts else 0
        path = self._cache.hold(hit)  # before room is made: not at its own cost
        if self._cache.num_to_be_had < num_pages - num_hit + growth:
            self._cache.release(path)
            return None
        self._cache.make_room(num_pages - num_hit)
        if hit is not None:
            self._cache.count_hit(hit)
        self._waiting.remove(seq)
        self._running[seq.request.id] = seq
        seq.slot = self._slots.acquire()
        seq.path = path
        seq.pages = [node.page for node in path] + self._pages.acquire(num_pages - num_hit)
        if seq.epoch == 0:
            seq.num_cached = seq.num_planned
        self._plan_saves(seq, num_hit)
        return Admit(
            seq.slot,
            seq.num_prompt,
            tuple(seq.ids),
            sampling=seq.request.sampling,
            media=seq.request.media,
            saved_slot=hit.slot if hit else SCRATCH,
        )

    def _plan_saves(self, seq: Sequence, num_hit: int) -> None:
        """Choose where behind the first `num_hit` pages of a prompt states will be saved."""
        num_seen = self._cache.see(seq.keys)
        if seq.epoch == 0:
            self._cache.lookups[_lookup(seq, num_hit, num_seen)] += 1
        points = snapshot_points(
            len(seq.keys),
            seq.request.boundaries,
            num_seen=num_seen,
            pages_per_state=self._cache.pages_per_state,
        )
        points = [point for point in points if point > num_hit]
        seq.save_ends = [point * PAGE_TOKENS for point in points]
        seq.coming = {seq.keys[point - 1] for point in points}
        self._coming |= seq.coming

    def _saves(self, seq: Sequence, end: int) -> tuple[tuple[int, int], ...]:
        """The states that a prefill up to `end` is to save, as far as there are slots for them."""
        saves: list[tuple[int, int]] = []
        while seq.save_ends and seq.save_ends[0] <= end:
            save_end = seq.save_ends.pop(0)
            slot = self._cache.take_slot()
            if slot is None:
                self._give_up_coming(seq, {seq.keys[save_end // PAGE_TOKENS - 1]})
            else:
                self._saving.add(slot)
                saves.append((save_end, slot))
        return tuple(saves)

    def _publish(self, seq: Sequence, part: Slice) -> None:
        """The step that saved these states went well."""
        for end, slot in part.saves:
            self._saving.remove(slot)
            keys = seq.keys[: end // PAGE_TOKENS]
            self._cache.publish(seq.path, keys, seq.pages, slot)
            self._give_up_coming(seq, {keys[-1]})

    def _drop_saves(self, part: Slice) -> None:
        """The states are of a sequence that is gone, or of a step that failed."""
        for _, slot in part.saves:
            self._saving.remove(slot)
            self._cache.give_back(slot)

    def _give_up_coming(self, seq: Sequence, keys: set[bytes]) -> None:
        seq.coming -= keys
        self._coming -= keys

    def _grow(self, seq: Sequence) -> bool:
        """Find room for a token, preempting the youngest until it fits; False if that was `seq`."""
        if seq.request.id not in self._running:
            return False
        if len(seq.pages) >= pages_for(seq.num_planned + 1):
            return True
        while not self._cache.make_room(1):
            victims = (s for s in self._running.values() if s.num_preemptions < MAX_PREEMPTIONS)
            youngest = max(victims, key=lambda seq: seq.order)
            self._preempt(youngest)
            if youngest is seq:
                return False
        seq.pages += self._pages.acquire(1)
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._set_back(seq)
        seq.num_preemptions += 1
        self.num_preemptions += 1

    def _set_back(self, seq: Sequence) -> None:
        """It waits again, with its tokens and its place in the queue."""
        del self._running[seq.request.id]
        self._release(seq)
        seq.give_up_progress()
        insort(self._waiting, seq, key=lambda seq: seq.order)

    def _release(self, seq: Sequence) -> None:
        self._pages.release(seq.own_pages)
        self._cache.release(seq.path)
        self._slots.release(seq.slot)
        self._give_up_coming(seq, set(seq.coming))
        seq.save_ends = []
        seq.path = []
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
            saves=self._saves(seq, end),
        )
        seq.num_planned = end
        return part


def _chunk(seq: Sequence, budget: int) -> int:
    """Tokens of the next prefill slice: to the end of what is known, else to the page grid."""
    left = seq.prefill_end - seq.num_planned
    if left <= budget:
        return left
    return max(0, (seq.num_planned + budget) // PAGE_TOKENS * PAGE_TOKENS - seq.num_planned)


def _lookup(seq: Sequence, num_hit: int, num_seen: int) -> Lookup:
    """What became of the search for the pages of a prompt."""
    if num_hit:
        return Lookup.WHOLE if num_hit == len(seq.keys) else Lookup.PART
    if seq.keys:
        return Lookup.NO_STATE if num_seen else Lookup.NEW
    return Lookup.SHORT if seq.num_prompt <= PAGE_TOKENS else Lookup.UNCACHED


def _take_prompt_logprobs(seq: Sequence) -> tuple[TokenLogprobs | None, ...]:
    if seq.request.sampling.num_prompt_logprobs is None or seq.reported:
        return ()
    scores = (None, *seq.prompt_logprobs)
    seq.prompt_logprobs.clear()
    return scores
