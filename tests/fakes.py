"""An engine that says what a test tells it to, and the whole application around it.

`FakeEngine` implements `engine.EngineClient`. A script is a list of steps: a tuple of token ids is
one delta, an `asyncio.Event` is waited for, an exception is raised. Time plays no part.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from engine import (
    EngineDied,
    EngineInfo,
    EngineState,
    EngineStats,
    FinishReason,
    Request,
    TokenDelta,
    TokenLogprobs,
)
from server.app import App, create_app
from server.constraints import GrammarQueue
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.media_wait import MediaSource
from server.metrics import Metrics
from server.tokenizer import Tokenizer
from server.validate import Validator

Step = tuple[int, ...] | asyncio.Event | Exception


@dataclass(frozen=True)
class Script:
    """What one request gets. The last tuple of ids carries `finish`; None: it never ends."""

    steps: Sequence[Step]
    finish: FinishReason | None = FinishReason.STOP
    num_cached_tokens: int = 0
    num_saved_tokens: int = 0
    queue_s: float = 0.0


def fake_logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    """Made-up logprobs that a test can compute again: the token is the likeliest."""
    top = tuple((token_id + k, -0.25 - k) for k in range(num_top))
    return TokenLogprobs(-0.25, 1, top)


class FakeEngine:
    """Plays scripts in the order of submission; records what was asked and what was cancelled."""

    def __init__(self) -> None:
        self.state: EngineState = "ready"
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.num_active = 0
        self.became_active = asyncio.Event()
        self.default: Callable[[Request], Script] | None = None
        self._scripts: deque[Script] = deque()
        self._died = asyncio.Event()

    def will(
        self,
        *steps: Step,
        finish: FinishReason | None = FinishReason.STOP,
        num_cached_tokens: int = 0,
        num_saved_tokens: int = 0,
        queue_s: float = 0.0,
    ) -> None:
        """Queue the script of one more request."""
        self._scripts.append(Script(steps, finish, num_cached_tokens, num_saved_tokens, queue_s))

    async def received(self, count: int) -> None:
        """Wait until so many requests were submitted."""
        while len(self.submitted) < count:
            self.became_active.clear()
            await asyncio.wait_for(self.became_active.wait(), 10)

    def die(self) -> None:
        """End every stream, running and to come, with EngineDied."""
        self.state = "dead"
        self._died.set()

    async def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        self.submitted.append(request)
        if self._scripts:
            script = self._scripts.popleft()
        else:
            assert self.default is not None, "a request came without a script"
            script = self.default(request)
        self.num_active += 1
        self.became_active.set()
        has_ended = False
        try:
            async for delta in self._play(request, script):
                has_ended = delta.finish is not None
                yield delta
        except Exception:
            has_ended = True
            raise
        finally:
            self.num_active -= 1
            if not has_ended:
                self.cancelled.append(request.id)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    async def _play(self, request: Request, script: Script) -> AsyncGenerator[TokenDelta, None]:
        sampling = request.sampling
        is_first = True
        last = max((i for i, s in enumerate(script.steps) if isinstance(s, tuple)), default=-1)
        for i, step in enumerate(script.steps):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await self._wait(step)
                continue
            logprobs: tuple[TokenLogprobs, ...] = ()
            prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
            if sampling.num_logprobs is not None:
                logprobs = tuple(fake_logprobs(t, sampling.num_logprobs) for t in step)
            if is_first and sampling.num_prompt_logprobs is not None:
                num_top = sampling.num_prompt_logprobs
                known = (fake_logprobs(t, num_top) for t in request.prompt_ids[1:])
                prompt_logprobs = (None, *known)
            yield TokenDelta(
                request.id,
                step,
                finish=script.finish if i == last else None,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                num_cached_tokens=script.num_cached_tokens if is_first else 0,
                num_saved_tokens=script.num_saved_tokens if is_first else 0,
                queue_s=script.queue_s if is_first else 0.0,
            )
            is_first = False
            await asyncio.sleep(0)
        if script.finish is None:
            await self._wait(asyncio.Event())

    async def _wait(self, event: asyncio.Event) -> None:
        """Wait for `event`, or die with the engine."""
        waits = [asyncio.create_task(e.wait()) for e in (event, self._died)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._died.is_set():
            raise EngineDied("the engine died")


@dataclass
class FakeServer:
    """The application on a fake engine, and its parts."""

    app: App
    engine: FakeEngine
    lifecycle: Lifecycle
    metrics: Metrics
    limits: Limits


def build_server(
    validator: Validator,
    tokenizer: Tokenizer,
    *,
    api_keys: Sequence[str] = (),
    open_metrics: bool = False,
    limits: Limits | None = None,
    media: MediaSource | None = None,
    grammars: GrammarQueue | None = None,
) -> FakeServer:
    """Call it inside a running loop."""
    limits = limits or Limits()
    engine = FakeEngine()
    lifecycle = Lifecycle(engine, request_timeout_s=limits.request_timeout_s)
    metrics = Metrics(engine, model_name="tiny")
    app = create_app(
        engine,
        validator,
        tokenizer,
        served_names=("tiny", "alias"),
        model_root="tiny-root",
        version="1.2.3",
        lifecycle=lifecycle,
        metrics=metrics,
        api_keys=api_keys,
        open_metrics=open_metrics,
        limits=limits,
        media=media,
        grammars=grammars,
    )
    return FakeServer(app, engine, lifecycle, metrics, limits)
