"""Whether new work is taken, and what is in flight: the server's life from start to drained.

Owns the set of flights. A `Flight` is one request's stay in the server; it can be aborted for three
reasons (the client went away, the request took too long, the server stops), and all three reach
the code that serves it the same way: its task is cancelled where it waits, everything below cleans
up, and the reason comes out of the `async with` as an exception.
"""

import asyncio
from types import TracebackType

from engine import EngineClient
from server.errors import ClientGone, Unavailable
from server.exchange import Exchange

SHUTDOWN_RETRY_S = 10
START_RETRY_S = 5


class Lifecycle:
    """Says what the probes say, admits work, and drains."""

    def __init__(self, engine: EngineClient, *, request_timeout_s: float = 600.0) -> None:
        self._engine = engine
        self._request_timeout_s = request_timeout_s
        self._is_draining = False
        self._flights: set[Flight] = set()
        self._landed = asyncio.Event()
        self.others_ready = True  # False: another process of this server cannot take work yet
        self.failure: str | None = None  # set: the server is to end with an error
        self.ended = asyncio.Event()  # set by `fail`

    def check_ready(self) -> None:
        """Raise Unavailable unless new work can be taken and the engine is well."""
        if self._is_draining:
            raise Unavailable(
                "The server is shutting down.", code="draining", retry_after_s=SHUTDOWN_RETRY_S
            )
        match self._engine.state:
            case "ready":
                return
            case "starting":
                raise _still_loading()
            case "dead":
                raise Unavailable(
                    "The engine is not running.", code="engine_dead", retry_after_s=10
                )

    def check_all_ready(self) -> None:
        """For probes: raise Unavailable unless the whole server can take new work."""
        self.check_ready()
        if not self.others_ready:
            raise _still_loading()

    @property
    def num_in_flight(self) -> int:
        return len(self._flights)

    def flight(self, exchange: Exchange) -> "Flight":
        """Register one request as work in progress: `async with lifecycle.flight(exchange)`."""
        return Flight(self, exchange, self._request_timeout_s)

    def fail(self, reason: str) -> None:
        """End the server with an error: `reason` is the one line that says why."""
        self.failure = self.failure or reason
        self.ended.set()

    def begin_drain(self) -> None:
        """From here on new work is refused."""
        self._is_draining = True

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        while self._flights:
            self._landed.clear()
            await self._landed.wait()

    def abort_all(self) -> None:
        """End what is in flight with an error."""
        for flight in tuple(self._flights):
            flight.abort(
                Unavailable(
                    "The server shut down before the answer was complete.",
                    code="draining",
                    retry_after_s=SHUTDOWN_RETRY_S,
                )
            )

    def board(self, flight: "Flight") -> None:
        self._flights.add(flight)

    def land(self, flight: "Flight") -> None:
        self._flights.discard(flight)
        self._landed.set()


def _still_loading() -> Unavailable:
    return Unavailable("The model is still loading.", code="starting", retry_after_s=START_RETRY_S)


class Flight:
    """One request in flight, served by the task that enters it."""

    def __init__(self, lifecycle: Lifecycle, exchange: Exchange, timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._reason: Exception | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Flight":
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[object] | None = task
        self._num_cancels_before = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(
            self._timeout_s,
            self.abort,
            Unavailable("The request took longer than the server allows.", code="request_timeout"),
        )
        self._lifecycle.board(self)
        return self

    def watch(self) -> None:
        """From here on a client that goes away ends the flight. Call it when the body is in."""
        self._watcher = asyncio.create_task(self._wait_for_disconnect())

    def abort(self, reason: Exception) -> None:
        """Cancel the serving task once; `reason` comes out of its `async with`.

        A flight whose whole answer is out lands by itself.
        """
        if self._task is not None and self._reason is None and not self._exchange.is_complete:
            self._reason = reason
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        self._lifecycle.land(self)
        if self._reason is None or task is None:
            return
        is_ours = task.uncancel() <= self._num_cancels_before
        if is_ours and kind is asyncio.CancelledError:
            raise self._reason from None

    async def _wait_for_disconnect(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self.abort(ClientGone())
