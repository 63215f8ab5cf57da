"""How the server reaches an engine: a protocol, so that a fake one is as good."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

import msgspec

from engine.plan import PAGE_TOKENS
from engine.request import Request, TokenDelta

EngineState = Literal["starting", "ready", "dead"]


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a started engine, for start-up lines, limits and metrics."""

    pid: int
    architecture: str
    dtype: str
    device: str
    num_parameters: int
    weight_bytes: int
    load_s: float
    max_model_len: int
    max_num_seqs: int
    max_step_tokens: int
    num_pages: int
    num_slots: int
    num_saved_slots: int = 0  # for states of the prefix cache; 0: it is off
    cache_bytes: int
    serves_media: bool = False  # the vision tower is loaded
    warnings: tuple[str, ...] = ()

    @property
    def num_kv_tokens(self) -> int:
        return self.num_pages * PAGE_TOKENS


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Gauges as of now, and counters since the engine started."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages_used: int = 0
    num_pages: int = 0
    num_slots_used: int = 0
    num_slots: int = 0
    num_pages_cached: int = 0  # in the prefix cache, held by running sequences or not
    num_states_saved: int = 0
    num_saved_slots: int = 0  # slots for saved states
    num_state_evictions: int = 0
    prefix_lookups: dict[str, int] = {}  # prompts, by what was found of them: `memory.Lookup`
    num_preemptions: int = 0
    num_steps: int = 0
    step_progress: int = 0  # grows within a step that takes long and is well
    num_restarts: int = 0
    new_step_tokens: tuple[int, ...] = ()  # tokens of each step since the stats before
    new_step_s: tuple[float, ...] = ()  # seconds of each step since the stats before


class EngineClient(Protocol):
    """An engine as the server sees it. All methods belong to one asyncio loop."""

    @property
    def state(self) -> EngineState:
        """`ready` once weights are in, caches sized and a warm-up generation came back right."""
        ...

    @property
    def info(self) -> EngineInfo | None:
        """None until first ready."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Run `request`. The request is sent when the generator is first awaited.

        Deltas that pile up while the consumer is busy are merged into one. Closing the generator
        early cancels the request. Raises an `EngineError`; a `CallerError` only before any delta,
        but for `GrammarStuck`, and for `StreamTooSlow` when more piles up than may.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request; unknown and finished ids are fine."""
        ...
