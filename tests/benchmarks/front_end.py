"""What a streamed chat token costs the server process: many streams, an engine that never waits.

    python -m tests.benchmarks.front_end [--streams 64] [--tokens 600] [--rounds 5]
                                         [--api-workers 1] [--profile] [--uvloop]

The real application, served on a TCP socket as `deltaserve serve` does it, in a process of its own
that keeps to one core. Its engine is a stand-in inside that process: each step is a frame as the
real engine sends it, one token for every stream, decoded and handed out as `EngineLink` does;
the next step begins when every stream took its token. So nothing is merged, each token is a chunk
and a write of its own, and the server always has work. The first half of an answer is reasoning.
The client reads raw sockets in another process, on another core, and counts the chunks it got.

For each round, without its first steps and its last:

    us/token   CPU time of the server process, user and system, by token; system calls are in it
    tok/s CPU  one by that: what one core does if it does nothing else
    tok/s wall tokens by the clock, less where the machine has other work
    yardstick  CPU time of a fixed piece of Python, before and after the round. Cores that are
               shared or throttled slow both alike: compare only rounds whose yardsticks agree

With `--api-workers` several such processes, each on a core of its own as far as there are cores,
take their connections from one socket as the workers of `deltaserve serve` do. Their CPU times add
up; the clock is that of the slowest, and the shares are the streams that each of them got. With as
many workers as cores the client competes with them: then the clock says little, and CPU time all.

`--profile` runs one more round under cProfile, which about doubles the cost of Python code, and
prints the functions with the largest share of time of their own.
"""

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import resource
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from engine import EngineInfo, EngineState, EngineStats, FinishReason, ModelConfig, Request
from engine.ipc import Deltas, decode_to_server, encode
from engine.request import TokenDelta
from server.app import create_app
from server.app_front import AppFront
from server.checkpoint_text import CheckpointText, read_checkpoint_text
from server.constraints.checker import GrammarChecker
from server.constraints.reader import ConstraintReader
from server.lifecycle import Lifecycle
from server.limits import Limits
from server.metrics import Metrics
from server.serving import run_front
from server.stop_orders import StopOrders
from server.validate import Validator
from server.workers.process import TakesTurns
from tests.server.text.tiny_tokenizer import SENTENCES, build_tiny_tokenizer

WARM_UP_STEPS = 10
NUM_PROFILE_ROWS = 20
WINDOW = 65536
MODEL_CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "max_position_embeddings": WINDOW,
    "eos_token_id": 482,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Options:
    streams: int
    tokens: int
    rounds: int
    api_workers: int
    profile: bool
    uvloop: bool


@dataclass(frozen=True)
class Figures:
    """What the server process measured in one round."""

    num_tokens: int
    wall_s: float
    user_s: float
    system_s: float
    yardstick_s: float
    shares: tuple[int, ...]  # streams of each process

    @classmethod
    def of_all(cls, all_figures: "list[Figures]") -> "Figures":
        """Of one round of several processes."""
        return cls(
            sum(each.num_tokens for each in all_figures),
            max(each.wall_s for each in all_figures),
            sum(each.user_s for each in all_figures),
            sum(each.system_s for each in all_figures),
            statistics.mean(each.yardstick_s for each in all_figures),
            tuple(share for each in all_figures for share in each.shares),
        )

    @property
    def us_per_token(self) -> float:
        return 1e6 * (self.user_s + self.system_s) / self.num_tokens

    def __str__(self) -> str:
        system = 1e6 * self.system_s / self.num_tokens
        return (
            f"{self.us_per_token:6.1f} us/token ({system:.1f} of it system)"
            f"{1e6 / self.us_per_token:8.0f} tok/s CPU"
            f"{self.num_tokens / self.wall_s:8.0f} tok/s wall"
            f"    yardstick {1e3 * self.yardstick_s:.1f} ms"
            + (f"    shares {self.shares}" if len(self.shares) > 1 else "")
        )


class Meter:
    """Measures the process between `start` and `stop`."""

    def __init__(self) -> None:
        self._yardstick_s = yardstick_s()
        self._wall_s, self._usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)

    def stop(self, num_tokens: int, num_streams: int) -> Figures:
        wall_s, usage = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        return Figures(
            num_tokens,
            wall_s - self._wall_s,
            usage.ru_utime - self._usage.ru_utime,
            usage.ru_stime - self._usage.ru_stime,
            (self._yardstick_s + yardstick_s()) / 2,
            (num_streams,),
        )


def yardstick_s() -> float:
    """CPU seconds of a fixed piece of Python, which makes and drops objects as a server does."""
    start = time.process_time()
    for i in range(20_000):
        b"".join([b"%x" % i, str({"index": i, "text": "x"}).encode()])
    return time.process_time() - start


@dataclass(slots=True)
class Stream:
    deltas: list[TokenDelta] = field(default_factory=list[TokenDelta])
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class EagerEngine:
    """Implements `engine.EngineClient`: a round begins when all streams are in, of all processes.

    `num_arrived` counts them, over all rounds.
    """

    def __init__(
        self,
        num_streams: int,
        num_arrived: "Synchronized[int]",
        answer: list[int],
        on_figures: Callable[[Figures], None],
    ) -> None:
        self.state: EngineState = "ready"
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.profiler: cProfile.Profile | None = None  # set: it runs while a round is measured
        self._num_streams = num_streams
        self._num_arrived = num_arrived
        self._answer = answer
        self._on_figures = on_figures
        self._streams: dict[str, Stream] = {}
        self._num_behind = 0
        self._all_took = asyncio.Event()

    async def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        stream = self._streams[request.id] = Stream()
        with self._num_arrived.get_lock():
            self._num_arrived.value += 1
        over = False
        while not over:
            await stream.arrived.wait()
            stream.arrived.clear()
            deltas, stream.deltas = stream.deltas, []
            (delta,) = deltas
            over = delta.finish is not None
            yield delta
            self._num_behind -= 1
            if not self._num_behind:
                self._all_took.set()

    async def run_rounds(self, num_rounds: int) -> None:
        for number in range(1, num_rounds + 1):
            while self._num_arrived.value < number * self._num_streams:
                await asyncio.sleep(0.002)
            await self._run(list(self._streams))

    def cancel(self, request_id: str) -> None:
        raise AssertionError("nothing is cancelled here")

    async def _run(self, ids: list[str]) -> None:
        """One round: every stream gets the whole answer, a token a step."""
        last = len(self._answer) - 1
        frames = [
            encode(Deltas(tuple(TokenDelta(request_id, (token_id,)) for request_id in ids)))
            for token_id in self._answer[:-1]
        ]
        meter: Meter | None = None
        for step, frame in enumerate(frames):
            if step == WARM_UP_STEPS:
                meter = Meter()
                if self.profiler is not None:
                    self.profiler.enable()
            if ids:
                self._hand_out(frame)
                await self._all_took.wait()
        if self.profiler is not None:
            self.profiler.disable()
        assert meter is not None
        self._on_figures(meter.stop((last - WARM_UP_STEPS) * len(ids), len(ids)))
        end = (self._answer[-1],)
        self._hand_out(encode(Deltas(tuple(TokenDelta(i, end, FinishReason.LENGTH) for i in ids))))
        self._streams.clear()

    def _hand_out(self, frame: bytes) -> None:
        message = decode_to_server(frame)
        assert isinstance(message, Deltas)
        self._num_behind = len(message.deltas)
        self._all_took.clear()
        for delta in message.deltas:
            if stream := self._streams.get(delta.request_id):
                stream.deltas.append(delta)
                stream.arrived.set()


def run_server(
    options: Options,
    index: int,
    listener: socket.socket,
    num_arrived: "Synchronized[int]",
    reports: Connection,
) -> None:
    """A server process: the figures of each round go to `reports`."""
    keep_to_core(index)
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_tokenizer(Path(folder))
        checkpoint = read_checkpoint_text(Path(folder))
    if options.api_workers > 1:
        listener = TakesTurns(fileno=listener.detach())
    loop_factory = None
    if options.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve_rounds(options, checkpoint, listener, num_arrived, reports))


async def serve_rounds(
    options: Options,
    checkpoint: CheckpointText,
    listener: socket.socket,
    num_arrived: "Synchronized[int]",
    reports: Connection,
) -> None:
    tokenizer = checkpoint.tokenizer
    num_rounds_left = options.rounds + options.profile

    def on_figures(figures: Figures) -> None:
        nonlocal num_rounds_left
        num_rounds_left -= 1
        if engine.profiler is None:
            reports.send(figures)
        else:
            print_profile(engine.profiler, figures.num_tokens)
        if not num_rounds_left:
            lifecycle.ended.set()
        elif options.profile and num_rounds_left == 1:
            engine.profiler = cProfile.Profile()

    answer = answer_ids(checkpoint, options.tokens)
    engine = EagerEngine(options.streams, num_arrived, answer, on_figures)
    checker = GrammarChecker()
    limits = Limits()
    lifecycle = Lifecycle(engine, request_timeout_s=limits.request_timeout_s)
    metrics = Metrics(engine, model_name="tiny")
    app = create_app(
        engine,
        Validator(
            tokenizer,
            checkpoint.template,
            ModelConfig.from_dict(MODEL_CONFIG),
            checkpoint.defaults,
            served_names=("tiny",),
            max_model_len=WINDOW,
            constraints=ConstraintReader(checker),
        ),
        tokenizer,
        served_names=("tiny",),
        model_root="tiny",
        version="0",
        lifecycle=lifecycle,
        metrics=metrics,
        limits=limits,
    )
    rounds = asyncio.create_task(engine.run_rounds(num_rounds_left))

    async def start() -> None:
        checker.start()

    async def stop() -> None:
        checker.close()
        await rounds

    await run_front(
        AppFront(app, lifecycle, limits, metrics),
        listener,
        lifecycle=lifecycle,
        orders=StopOrders(),
        start=start,
        stop=stop,
        shutdown_timeout_s=30.0,
    )


def answer_ids(checkpoint: CheckpointText, num_tokens: int) -> list[int]:
    """Prose as tokens, with the end of the thinking in the middle."""
    ids = checkpoint.tokenizer.encode(" ".join(SENTENCES[:4]))
    prose = (ids * (num_tokens // len(ids) + 1))[:num_tokens]
    end = checkpoint.tokenizer.id_of("</think>")
    assert end is not None
    prose[num_tokens // 2] = end
    return prose


def print_profile(profiler: cProfile.Profile, num_tokens: int) -> None:
    entries = sorted(profiler.getstats(), key=lambda entry: -entry.inlinetime)
    total_s = sum(entry.inlinetime for entry in entries)
    print("\n| own time | calls per token | function |\n|---|---|---|")
    for entry in entries[:NUM_PROFILE_ROWS]:
        code = entry.code
        name = code if isinstance(code, str) else f"{short_path(code.co_filename)} {code.co_name}"
        share, calls = 100 * entry.inlinetime / total_s, entry.callcount / num_tokens
        print(f"| {share:.1f} % | {calls:.2f} | `{name.strip('<>')}` |")


def short_path(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def keep_to_core(index: int) -> None:
    """Stay on one of this process's cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})


def read_streams(port: int, num_streams: int, num_tokens: int) -> None:
    """Ask for all streams at once, and read each to its end."""
    body = json.dumps(
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Tell me about the dog."}],
            "stream": True,
            "max_tokens": num_tokens,
        }
    ).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    selector = selectors.DefaultSelector()
    for _ in range(num_streams):
        wire = socket.create_connection(("127.0.0.1", port))
        wire.sendall(head + body)
        selector.register(wire, selectors.EVENT_READ, bytearray())
    while selector.get_map():
        for key, _ in selector.select():
            wire, received = key.fileobj, key.data
            assert isinstance(wire, socket.socket)
            data = wire.recv(1 << 16)
            received += data
            if not data:
                selector.unregister(wire)
                wire.close()
                check_stream(bytes(received), num_tokens)
    selector.close()


def check_stream(received: bytes, num_tokens: int) -> None:
    """Every token made a chunk, but the end of the thinking, and the stream has its end."""
    num_chunks = received.count(b"data: {")
    if num_chunks != num_tokens - 1 or b"data: [DONE]" not in received[-40:]:
        raise SystemExit(f"a stream is not whole: {num_chunks} chunks, begins {received[:500]!r}")


def parse_options() -> Options:
    parser = argparse.ArgumentParser(description="What a streamed chat token costs the server.")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=600, help="per stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--api-workers", type=int, default=1, help="processes that serve")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--uvloop", action="store_true", help="instead of asyncio's own loop")
    options = Options(**vars(parser.parse_args()))
    if options.tokens < WARM_UP_STEPS + 2 or options.streams < 1 or options.rounds < 1:
        parser.error(f"at least {WARM_UP_STEPS + 2} tokens, one stream and one round")
    if options.api_workers < 1 or (options.profile and options.api_workers > 1):
        parser.error("at least one worker, and only one with --profile")
    return options


def main() -> None:
    options = parse_options()
    context = multiprocessing.get_context("spawn")
    num_arrived = context.Value("q", 0)
    all_reports: list[Connection] = []
    servers: list[SpawnProcess] = []
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        port: int = listener.getsockname()[1]
        for index in range(options.api_workers):
            reports, theirs = context.Pipe(duplex=False)
            server = context.Process(
                target=run_server, args=(options, index, listener, num_arrived, theirs)
            )
            server.start()
            theirs.close()
            servers.append(server)
            all_reports.append(reports)
    keep_to_core(options.api_workers)
    try:
        figures: list[Figures] = []
        for _ in range(options.rounds):
            read_streams(port, options.streams, options.tokens)
            figures.append(Figures.of_all([reports.recv() for reports in all_reports]))
            print(figures[-1], flush=True)
        us_per_token = statistics.median(each.us_per_token for each in figures)
        print(f"median {us_per_token:.1f} us/token, {1e6 / us_per_token:.0f} tok/s on one core")
        if options.profile:
            read_streams(port, options.streams, options.tokens)
        for server in servers:
            server.join()
    finally:
        for server in servers:
            server.kill()


if __name__ == "__main__":
    main()
