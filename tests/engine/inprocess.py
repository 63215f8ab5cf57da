"""The real loop, scheduler, runner and model in this process, driven turn by turn."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from engine.ipc import Cancel, Deltas, Failed, Heartbeat, Submit
from engine.loop import EngineLoop, Launcher
from engine.memory import PagePool, PrefixCache, SlotPool
from engine.plan import PAGE_TOKENS
from engine.request import Request, SamplingParams, TokenDelta


@dataclass
class ScriptedMailbox:
    """Hands out each request at its turn, and keeps what comes back."""

    arrivals: list[tuple[int, Request]]  # (turn, request)
    turn: int = 0
    deltas: dict[str, list[TokenDelta]] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)

    def receive(self, timeout_s: float) -> Iterable[Submit | Cancel]:
        due = [request for turn, request in self.arrivals if turn <= self.turn]
        self.arrivals = [(turn, request) for turn, request in self.arrivals if turn > self.turn]
        self.turn += 1
        return [Submit(request) for request in due]

    def send(self, message: Deltas | Failed | Heartbeat) -> None:
        if isinstance(message, Failed):
            self.failures.append(message)
        if isinstance(message, Deltas):
            for delta in message.deltas:
                self.deltas.setdefault(delta.request_id, []).append(delta)


@dataclass
class Outcome:
    deltas: dict[str, list[TokenDelta]]
    num_preemptions: int
    max_batch: int  # most sequences running at once

    def ids(self, request_id: str) -> list[int]:
        return [token_id for delta in self.deltas[request_id] for token_id in delta.token_ids]


def serve(
    runner: Launcher,
    requests: Sequence[Request],
    *,
    num_pages: int,
    num_slots: int,
    max_step_tokens: int,
    every: int = 0,
    num_saved_slots: int = 0,
) -> Outcome:
    """Serve `requests`, one arriving each `every` turns, to the end; asserts all invariants."""
    mailbox = ScriptedMailbox([(i * every, request) for i, request in enumerate(requests)])
    pages, saved_slots = PagePool(num_pages), SlotPool(num_saved_slots, first=num_slots + 1)
    loop = EngineLoop(
        pages,
        SlotPool(num_slots),
        PrefixCache(pages, saved_slots, pages_per_state=1),
        runner,
        mailbox,
        max_step_tokens=max_step_tokens,
        max_waiting=len(requests),
        queue_timeout_s=600.0,
    )
    scheduler = loop._scheduler
    max_batch = 0
    while mailbox.arrivals or loop.has_work:
        loop.turn()
        scheduler.check()
        max_batch = max(max_batch, scheduler.num_running)
    assert mailbox.failures == []
    assert scheduler.num_pages_used == loop._slots.num_used == 0
    return Outcome(mailbox.deltas, scheduler.num_preemptions, max_batch)


def serve_again(
    runner: Launcher,
    requests: Sequence[Request],
    *,
    num_pages: int,
    num_slots: int,
    max_step_tokens: int,
) -> Outcome:
    """Serve `requests` when each was served before, so that all of its full pages are found."""
    before = [msgspec.structs.replace(one, id=f"before {one.id}") for one in requests]
    outcome = serve(
        runner,
        [*before, *requests],
        num_pages=num_pages,
        num_slots=num_slots,
        max_step_tokens=max_step_tokens,
        num_saved_slots=3 * len(requests),
    )
    for one in requests:
        found = outcome.deltas[one.id][0].num_cached_tokens
        assert found == (len(one.prompt_ids) - 1) // PAGE_TOKENS * PAGE_TOKENS
    return outcome


def greedy(request_id: str, prompt_ids: Sequence[int], max_tokens: int) -> Request:
    return Request(
        id=request_id,
        prompt_ids=tuple(prompt_ids),
        sampling=SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0),
    )
