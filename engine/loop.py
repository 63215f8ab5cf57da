"""Plan, launch, commit, one step ahead: step N+1 is planned and launched while step N computes.

Owns the clock of the engine process: queue times, the queue timeout and heartbeats. The scheduler
decides, the runner computes, the mailbox carries; this file only lets them take turns, in one
thread. Requests whose grammar is not compiled yet are kept from the scheduler by `grammar_wait`.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from engine.client import EngineStats
from engine.errors import (
    CallerError,
    EngineError,
    GrammarStuck,
    QueueTimeout,
    RequestFailed,
)
from engine.grammar_wait import GrammarSource, GrammarWait
from engine.ipc import HEARTBEAT_S, Cancel, Deltas, Failed, Heartbeat, Submit
from engine.memory import PagePool, PrefixCache, SlotPool
from engine.plan import PROBE, DeviceLost, StepPlan, StepResult
from engine.queue_times import QueueTimes
from engine.request import Request, TokenDelta
from engine.scheduler import Scheduler

MAX_PREPARED = 64  # grammars for requests that wait, besides those that run
COMPILING_POLL_S = 0.002  # how soon an idle loop sees that a grammar is ready

_log = logging.getLogger(__name__)


class StepHandle(Protocol):
    """A launched step."""

    def result(self, timeout: float | None = None) -> StepResult:
        """Wait for the step. Raises TimeoutError after `timeout` seconds, or what it raised."""
        ...


class Launcher(Protocol):
    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue a step behind those launched before and return at once."""
        ...


class Mailbox(Protocol):
    """Where submits and cancels come from, and deltas, failures and heartbeats go."""

    def receive(self, timeout_s: float) -> Iterable[Submit | Cancel]:
        """All that is there; waits up to `timeout_s` for the first."""
        ...

    def send(self, message: Deltas | Failed | Heartbeat) -> None: ...


class EngineLoop:
    def __init__(
        self,
        pages: PagePool,
        slots: SlotPool,
        cache: PrefixCache,
        runner: Launcher,
        mailbox: Mailbox,
        *,
        max_step_tokens: int,
        max_waiting: int,
        queue_timeout_s: float,
        preempts: bool = True,
        progress: Callable[[], int] = lambda: 0,
        grammars: GrammarSource | None = None,
    ) -> None:
        """`progress` grows while a step that takes long is well.

        Requests wait until `grammars` has compiled theirs; without it, none is compiled ahead.
        """
        self._pages = pages
        self._slots = slots
        self._cache = cache
        self._scheduler = Scheduler(
            pages,
            slots,
            cache,
            max_step_tokens=max_step_tokens,
            max_waiting=max_waiting,
            preempts=preempts,
        )
        self._runner = runner
        self._mailbox = mailbox
        self._grammars = GrammarWait(
            grammars, max_waiting=max_waiting, max_prepared=slots.num_slots + MAX_PREPARED
        )
        self._queue_times = QueueTimes(queue_timeout_s)
        self._progress = progress
        self._in_flight: deque[tuple[StepPlan, StepHandle]] = deque()
        self._queue_s: dict[str, float] = {}  # of requests whose first delta is not out
        self._num_steps = 0
        self._step_tokens: list[int] = []
        self._step_s: list[float] = []
        self._step_began = 0.0
        self._heartbeat_at = 0.0

    @property
    def has_work(self) -> bool:
        return self._has_steps or bool(self._grammars.num_waiting)

    @property
    def _has_steps(self) -> bool:
        """Whether steps run or may be planned: grammars that compile are no reason to hurry."""
        return self._scheduler.has_work or bool(self._in_flight)

    def run(self) -> None:
        """Serve until the process ends, or its device turns out to be broken."""
        while True:
            self.turn()

    def turn(self) -> None:
        """One round: hear what is new, launch a step, and settle the one before it."""
        for message in self._mailbox.receive(self._patience_s()):
            match message:
                case Submit(request):
                    self._take(request)
                case Cancel(request_id):
                    self._forget(request_id)
        self._take_ready()
        plan = self._scheduler.plan()
        if plan is not None:
            self._note_planned(plan)
            self._in_flight.append((plan, self._runner.launch(plan)))
        self._expire_queue()
        if len(self._in_flight) > (1 if plan is not None else 0):
            self._settle(*self._in_flight.popleft())
        self._beat()

    def _patience_s(self) -> float:
        """How long to wait for messages: not at all while there are steps."""
        if self._has_steps:
            return 0.0
        return COMPILING_POLL_S if self._grammars.num_waiting else HEARTBEAT_S

    def _take(self, request: Request) -> None:
        """Hand a request to the scheduler, or hold it back until its grammar is compiled."""
        try:
            if not self._grammars.takes(request):
                self._scheduler.submit(request)
            self._queue_times.start(request.id)
        except CallerError as refusal:
            self._send_failure(request.id, refusal)

    def _take_ready(self) -> None:
        for request, error in self._grammars.ready():
            try:
                if error is not None:
                    raise error
                self._scheduler.submit(request)
            except EngineError as refusal:
                self._forget(request.id)
                self._send_failure(request.id, refusal)

    def _settle(self, plan: StepPlan, handle: StepHandle) -> None:
        try:
            result = self._wait(handle)
        except Exception as error:  # the runner's, whatever it is: contained here, never lost
            self._contain(plan, error)
            return
        self._num_steps += 1
        now = time.monotonic()
        self._step_tokens.append(plan.num_tokens)
        self._step_s.append(now - self._step_began)
        self._step_began = now
        for request_id in result.failed:
            self._forget(request_id)
            self._send_failure(request_id, GrammarStuck("the grammar allows nothing to follow"))
        for request_id in result.unencoded:
            self._forget(request_id)
            self._send_failure(request_id, RequestFailed("the engine could not encode a picture"))
        deltas = self._scheduler.commit(plan, result)
        for delta in deltas:
            if delta.finish is not None:
                self._grammars.end(delta.request_id)
        if deltas:
            self._mailbox.send(Deltas(tuple(self._with_queue_time(delta) for delta in deltas)))

    def _wait(self, handle: StepHandle) -> StepResult:
        while True:
            try:
                return handle.result(timeout=HEARTBEAT_S)
            except TimeoutError:
                self._beat()  # the loop is well; whether the step is, its counters tell

    def _contain(self, plan: StepPlan, error: Exception) -> None:
        """A failed step costs the request that is guilty, if one is; see `engine.suspects`.

        However many are guilty, one after another, the engine goes on: nobody can end it by what
        he asks for. It dies of a device that is lost, or that fails without any request.
        """
        if isinstance(error, DeviceLost):
            raise error
        guilty = self._scheduler.fail(plan)
        _log.error(
            "a step of %d tokens failed; %s",
            plan.num_tokens,
            "its requests are computed again" if guilty is None else f"{guilty} is given up",
            exc_info=error,
        )
        if guilty is None:
            return
        self._wait(self._runner.launch(PROBE))
        self._forget(guilty)
        self._send_failure(guilty, RequestFailed("the engine could not compute this request"))

    def _expire_queue(self) -> None:
        """Requests that no plan has touched in time are refused."""
        for request_id in self._queue_times.expired(self._scheduler.follows):
            self._forget(request_id)
            message = f"no capacity came free within {self._queue_times.timeout_s:g} s"
            self._send_failure(request_id, QueueTimeout(message))

    def _forget(self, request_id: str) -> None:
        self._scheduler.cancel(request_id)
        self._grammars.end(request_id)
        self._queue_times.end(request_id, time.monotonic())
        self._queue_s.pop(request_id, None)

    def _note_planned(self, plan: StepPlan) -> None:
        now = time.monotonic()
        if not self._in_flight:
            self._step_began = now
        if plan.admits:
            for part in plan.slices:
                waited_s = self._queue_times.end(part.request_id, now)
                if waited_s is not None:
                    self._queue_s[part.request_id] = waited_s

    def _with_queue_time(self, delta: TokenDelta) -> TokenDelta:
        queue_s = self._queue_s.pop(delta.request_id, None)
        return delta if queue_s is None else msgspec.structs.replace(delta, queue_s=queue_s)

    def _send_failure(self, request_id: str, error: EngineError) -> None:
        self._mailbox.send(Failed(request_id, error.code, str(error)))

    def _beat(self) -> None:
        """Say how things are: often enough for gauges, at once when work begins or ends."""
        now = time.monotonic()
        idle = not self._has_steps
        if now - self._heartbeat_at < HEARTBEAT_S and not (idle and self._step_tokens):
            return
        self._heartbeat_at = now
        stats = EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting + self._grammars.num_waiting,
            num_pages_used=self._scheduler.num_pages_used,
            num_pages=self._pages.num_pages,
            num_slots_used=self._slots.num_used,
            num_slots=self._slots.num_slots,
            num_pages_cached=self._cache.num_pages,
            num_states_saved=self._cache.num_states,
            num_saved_slots=self._cache.num_slots,
            num_state_evictions=self._cache.num_evictions,
            prefix_lookups={str(found): count for found, count in self._cache.lookups.items()},
            num_preemptions=self._scheduler.num_preemptions,
            num_steps=self._num_steps,
            step_progress=self._progress(),
            new_step_tokens=tuple(self._step_tokens),
            new_step_s=tuple(self._step_s),
        )
        self._step_tokens.clear()
        self._step_s.clear()
        self._mailbox.send(Heartbeat(stats, has_work=not idle))
