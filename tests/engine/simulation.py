"""A runner on integers whose next token depends on every earlier one, and a loop to drive it.

The fake device keeps what the real one keeps: per slot a running hash (the recurrent state) and
the last token, per page the tokens written to it. Each step it reads back the whole history from
the pages and compares it with the state, so a page or slot that is shared, lost or not reset
changes the output or trips an assertion. After a step that raised, the slots it touched hold
rubbish until they start again, as on the real device, and so do those it would have saved to.
"""

from collections import deque
from dataclasses import dataclass, field

from engine.plan import PAGE_TOKENS, PROBE, SCRATCH, Admit, Slice, StepPlan, StepResult
from engine.request import Request, TokenDelta, TokenLogprobs
from engine.scheduler import Scheduler

VOCAB = 97
STOP_ID = 13


class StepFailed(Exception):
    pass


def advance(state: int, token_id: int) -> int:
    return (state * 1_000_003 + token_id + 1) % (1 << 61)


def next_token(state: int) -> int:
    return (state >> 7) % VOCAB


def solo_run(request: Request) -> list[int]:
    """The output of a request that is alone in the world."""
    state = 0
    for token_id in request.prompt_ids:
        state = advance(state, token_id)
    output: list[int] = []
    while len(output) < request.sampling.max_tokens:
        output.append(next_token(state))
        state = advance(state, output[-1])
        if output[-1] in request.sampling.stop_token_ids:
            break
    return output


@dataclass
class FakeRunner:
    num_pages: int
    num_slots: int
    fails_at: frozenset[int] = frozenset()  # steps, by count, that raise in the middle
    guilty: frozenset[str] = frozenset()  # requests whose every step past `guilty_from` raises
    guilty_from: int = 0  # position
    state: dict[int, int] = field(default_factory=dict)
    last_token: dict[int, int] = field(default_factory=dict)
    rows: dict[int, Admit] = field(default_factory=dict)
    pages: dict[int, list[int | None]] = field(default_factory=dict)
    rubbish: set[int] = field(default_factory=set)
    num_steps: int = 0
    num_computed: int = 0  # tokens

    def step(self, plan: StepPlan) -> StepResult:
        if plan is PROBE:
            return StepResult((0,), (None,))
        self.num_steps += 1
        for admit in plan.admits:
            assert SCRATCH < admit.slot <= self.num_slots
            self.rows[admit.slot] = admit
            if admit.saved_slot != SCRATCH:
                assert admit.saved_slot > self.num_slots
                assert admit.saved_slot not in self.rubbish
                self.rubbish.discard(admit.slot)
                self.state[admit.slot] = self.state[admit.saved_slot]
        slots = [part.slot for part in plan.slices]
        assert len(set(slots)) == len(slots), "one slice per slot"
        assert [part.decodes for part in plan.slices] == sorted(
            (part.decodes for part in plan.slices), reverse=True
        ), "decodes first"
        token_ids: list[int] = []
        scores: list[tuple[TokenLogprobs, ...]] = []
        for at, part in enumerate(plan.slices):
            is_guilty = part.request_id in self.guilty and part.end > self.guilty_from
            if is_guilty or (self.num_steps in self.fails_at and at == len(plan.slices) // 2):
                self.rubbish |= set(slots)
                self.rubbish |= {slot for part in plan.slices for _, slot in part.saves}
                raise StepFailed
            sampled = self._run(part)
            if part.samples:
                token_ids.append(sampled)
            if part.scores_prompt:
                scores.append(self._score(part))
        return StepResult(tuple(token_ids), (None,) * len(token_ids), tuple(scores))

    def _run(self, part: Slice) -> int:
        ids = part.token_ids or (self.last_token.get(part.slot, 0),)
        assert len(ids) == part.num_tokens
        assert part.decodes == (part.start >= len(self.rows[part.slot].ids))
        assert not part.decodes or part.num_tokens == 1
        assert part.decodes or part.start % PAGE_TOKENS == 0
        if part.start == 0:
            self.rubbish.discard(part.slot)
        state = 0 if part.start == 0 else self.state.get(part.slot, 0)
        saves = dict(part.saves)
        assert len(part.pages) * PAGE_TOKENS >= part.start + part.num_tokens
        for position, token_id in enumerate(ids, part.start):
            page = part.pages[position // PAGE_TOKENS]
            assert SCRATCH < page <= self.num_pages
            self.pages.setdefault(page, [None] * PAGE_TOKENS)[position % PAGE_TOKENS] = token_id
            state = advance(state, token_id)
            if position + 1 in saves:
                slot = saves.pop(position + 1)
                assert slot > self.num_slots
                assert not part.decodes
                assert (position + 1) % PAGE_TOKENS == 0
                self.state[slot] = state
                self.rubbish.discard(slot)
        assert not saves
        self.num_computed += len(ids)
        self.state[part.slot] = state
        if part.samples:
            self.last_token[part.slot] = next_token(state)
        if part.slot in self.rubbish:
            return next_token(state)
        attended = 0
        for position in range(part.start + part.num_tokens):
            token_id = self.pages[part.pages[position // PAGE_TOKENS]][position % PAGE_TOKENS]
            assert token_id is not None
            attended = advance(attended, token_id)
        assert attended == state, "pages and recurrent state tell the same history"
        return next_token(state)

    def _score(self, part: Slice) -> tuple[TokenLogprobs, ...]:
        """Stands in for logprobs: the rank says which prompt token was scored."""
        prompt = self.rows[part.slot].ids[: self.rows[part.slot].num_prompt_tokens]
        successors = prompt[part.start + 1 : part.start + part.num_tokens + 1]
        return tuple(TokenLogprobs(0.0, token_id, ()) for token_id in successors)


@dataclass
class Simulation:
    """Drives a scheduler and the fake runner with `depth` steps in flight, checking each step."""

    scheduler: Scheduler
    runner: FakeRunner
    depth: int = 1
    in_flight: deque[tuple[StepPlan, StepResult | StepFailed]] = field(default_factory=deque)
    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def step(self) -> None:
        plan = self.scheduler.plan()
        self.scheduler.check()
        if plan is not None:
            try:
                self.in_flight.append((plan, self.runner.step(plan)))
            except StepFailed as failure:
                self.in_flight.append((plan, failure))
        if len(self.in_flight) > (self.depth if plan is not None else 0):
            self._settle(*self.in_flight.popleft())
            self.scheduler.check()

    def _settle(self, plan: StepPlan, result: StepResult | StepFailed) -> None:
        if isinstance(result, StepFailed):
            if (failed := self.scheduler.fail(plan)) is not None:
                self.failed.add(failed)
            return
        for delta in self.scheduler.commit(plan, result):
            assert delta.request_id not in self.failed
            self.deltas.setdefault(delta.request_id, []).append(delta)

    def run(self, *, max_steps: int = 20_000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if not self.scheduler.has_work and not self.in_flight:
                return
            self.step()
        raise AssertionError("the scheduler makes no progress")

    def output(self, request_id: str) -> list[int]:
        return [t for delta in self.deltas.get(request_id, []) for t in delta.token_ids]
