"""The engine process: load, warm up, then turn the loop until the parent goes away.

Started by `engine.process` with one `Start` frame on standard input, which then stays open as a
lifeline: when it closes, the parent is gone and this process ends at once, whatever it is doing.
Signals are the parent's business: Ctrl-C in a terminal reaches the whole process group, and the
parent may still be draining.
"""

import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from engine.client import EngineInfo
from engine.config import EngineConfig, MemoryPlan
from engine.grammar_wait import GrammarSource
from engine.ipc import Cancel, Deltas, Failed, Heartbeat, Start, Submit
from engine.log import flush_log
from engine.loop import EngineLoop, Launcher
from engine.mailbox import SocketMailbox
from engine.memory import PagePool, PrefixCache, SlotPool
from engine.plan import PAGE_TOKENS
from engine.request import Request, SamplingParams

_STDIN = 0  # the descriptor: a buffered reader would hold a lock at exit
EXIT_BAD_CONFIG = 78  # EX_CONFIG: trying again would fail again


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A loaded model, ready to step."""

    runner: Launcher
    memory: MemoryPlan
    info: EngineInfo
    num_real_tokens: int
    warm_up_tokens: int = PAGE_TOKENS + 1  # of the longer prompt: more than a page
    warm_up_sizes: Sequence[int] = ()  # of prompts that are served one by one, and scored
    warm_up_kinds: Sequence[SamplingParams] = ()  # of requests that are served one by one
    on_ready: Callable[[], None] = lambda: None  # after the warm-up
    progress: Callable[[], int] = lambda: 0  # grows while a long step is well
    grammars: GrammarSource | None = None  # None: its runner serves no grammars, or needs no time


def main(build: Callable[[EngineConfig], Built]) -> None:
    """Run an engine process to its end. `build` raises ValueError for what the user can mend."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start = read_start(_STDIN)
    threading.Thread(target=_exit_at_eof, args=(_STDIN,), daemon=True).start()
    try:
        built = build(start.config)
    except ValueError as error:
        flush_log()
        print(f"deltaserve: error: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_BAD_CONFIG)
    warm_up(built)
    built.on_ready()
    _make_loop(built, SocketMailbox(start.address, built.info), start.config).run()


def start_frame(start: Start) -> bytes:
    """The bytes `read_start` reads."""
    frame = msgspec.msgpack.encode(start)
    return struct.pack("<I", len(frame)) + frame


def read_start(fd: int) -> Start:
    (length,) = struct.unpack("<I", _read_exactly(fd, 4))
    return msgspec.msgpack.decode(_read_exactly(fd, length), type=Start)


def _read_exactly(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(fd, length - len(data))
        if not piece:
            sys.exit("deltaserve: error: the engine process was started without a configuration")
        data += piece
    return data


def warm_up(built: Built) -> None:
    """Generate through the real loop, twice, and compare: ready then means fast and right.

    Then serve a prompt of each of `built.warm_up_sizes`, and `built.warm_up_kinds`. Raises
    RuntimeError if the two runs differ, if one does not end or leaves anything behind.
    """
    first, second = _generate(built), _generate(built)
    if first != second or not all(len(ids) == _WARM_UP_TOKENS for ids in first):
        raise RuntimeError(f"the warm-up generations differ or are cut: {first} and {second}")
    for size in built.warm_up_sizes:
        _serve_alone(built, _prompt(built, min(size, _longest(built) - 1)), _SCORED)
    for sampling in built.warm_up_kinds:
        _serve_alone(built, (0,), sampling)


def _serve_alone(built: Built, prompt_ids: tuple[int, ...], sampling: SamplingParams) -> None:
    (ids,) = _serve(built, [(prompt_ids, sampling)])
    if len(ids) != sampling.max_tokens:
        raise RuntimeError(f"the warm-up of {sampling} generated {ids}")


_SCORED = SamplingParams(max_tokens=1, seed=0, temperature=0.0, num_prompt_logprobs=1)
_WARM_UP_TOKENS = 4


def _generate(built: Built) -> list[list[int]]:
    """Greedy output of a short and a longer prompt, batched where there are slots for both."""
    longest = min(built.warm_up_tokens, _longest(built) - _WARM_UP_TOKENS)
    sampling = SamplingParams(max_tokens=_WARM_UP_TOKENS, seed=0, temperature=0.0)
    lengths = sorted({1, max(1, longest)})
    return _serve(built, [(_prompt(built, length), sampling) for length in lengths])


def _longest(built: Built) -> int:
    """Tokens of a request, those it generates included."""
    return min(built.memory.max_model_len, built.memory.num_kv_tokens)


def _prompt(built: Built, length: int) -> tuple[int, ...]:
    return tuple(i % built.num_real_tokens for i in range(length))


def _serve(built: Built, wishes: list[tuple[tuple[int, ...], SamplingParams]]) -> list[list[int]]:
    """The output of each prompt, two at most: served together as far as there are slots."""
    requests = [
        Request(id=f"warm-up-{i}", prompt_ids=prompt_ids, sampling=sampling)
        for i, (prompt_ids, sampling) in enumerate(wishes)
    ]
    mailbox = _WarmUpMailbox(requests, {request.id: [] for request in requests})
    loop = _make_loop(built, mailbox, None)
    loop.turn()
    while loop.has_work:
        loop.turn()
    return list(mailbox.outputs.values())


@dataclass(slots=True)
class _WarmUpMailbox:
    requests: list[Request]
    outputs: dict[str, list[int]]

    def receive(self, timeout_s: float) -> Iterable[Submit | Cancel]:
        requests, self.requests = self.requests, []
        return [Submit(request) for request in requests]

    def send(self, message: Deltas | Failed | Heartbeat) -> None:
        if isinstance(message, Failed):
            raise RuntimeError(f"the warm-up generation failed: {message.message}")
        if isinstance(message, Deltas):
            for delta in message.deltas:
                self.outputs[delta.request_id].extend(delta.token_ids)


def _make_loop(
    built: Built, mailbox: SocketMailbox | _WarmUpMailbox, config: EngineConfig | None
) -> EngineLoop:
    memory = built.memory
    pages = PagePool(memory.num_pages)
    saved_slots = SlotPool(memory.num_saved_slots, first=memory.num_slots + 1)
    return EngineLoop(
        pages,
        SlotPool(memory.num_slots),
        PrefixCache(pages, saved_slots, pages_per_state=memory.pages_per_state),
        built.runner,
        mailbox,
        max_step_tokens=memory.max_step_tokens,
        max_waiting=config.max_waiting if config else 2,
        queue_timeout_s=config.queue_timeout_s if config else 3600.0,
        preempts=config is None or not config.deterministic,
        progress=built.progress,
        grammars=built.grammars,
    )


def _exit_at_eof(fd: int) -> None:
    while os.read(fd, 4096):
        pass
    os._exit(0)
