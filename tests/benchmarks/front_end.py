"""What a streamed chat token costs the server process: many streams, an engine that never waits.

    python -m tests.benchmarks.front_end [--streams 64] [--tokens 600] [--rounds 5]
                                         [--engine FRAME_TOKENS] [--profile] [--uvloop]

The real application runs as `deltaserve serve` runs it, on a TCP socket, in a process of its own
that keeps to one core. Its engine is a stand-in inside that process: each of its steps is a frame
as the real engine sends it, with one token for every stream, which is decoded and handed out as
`engine.EngineProcess` does; the next step comes when every stream took its token. So nothing is
merged, every token is a chunk and a write of its own, and the server is never idle. The first half
of an answer is reasoning. The client reads raw sockets in another process, on another core, and
checks that each stream came whole.

Reported per round, from the tenth step to the last but one:

    us/token   CPU time of the server process by token, user and system: system calls are in it
    tok/s CPU  its inverse, what one core does if it does nothing else: the figure to compare
    tok/s wall tokens by the clock; lower where the machine has other work

`--profile` runs one more round under cProfile, which doubles the cost, and prints the functions
with the most time of their own.
"""

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import os
import pstats
import resource
import selectors
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from engine import EngineInfo, EngineState, EngineStats, FinishReason, ModelConfig, Request
from engine.ipc import Deltas, decode_to_server, encode
from engine.request import TokenDelta
from server.app import create_app
from server.checkpoint_text import CheckpointText, read_checkpoint_text
from server.constraints import ConstraintReader
from server.constraints_checker import GrammarChecker
from server.http_limits import HttpLimits
from server.lifecycle import Lifecycle
from server.metrics import Metrics
from server.serving import serve
from server.validate import Validator
from tests.server.text.tiny_tokenizer import SENTENCES, build_tiny_tokenizer

WARM_UP_STEPS = 10
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
class Figures:
    """What the server process measured in one round."""

    num_tokens: int
    wall_s: float
    user_s: float
    system_s: float

    @property
    def us_per_token(self) -> float:
        return 1e6 * (self.user_s + self.system_s) / self.num_tokens

    def __str__(self) -> str:
        system = 1e6 * self.system_s / self.num_tokens
        return (
            f"{self.us_per_token:8.1f} us/token ({system:.1f} of it system)"
            f"{1e6 / self.us_per_token:10.0f} tok/s CPU"
            f"{self.num_tokens / self.wall_s:10.0f} tok/s wall"
        )


@dataclass(slots=True)
class Stream:
    deltas: list[TokenDelta] = field(default_factory=list[TokenDelta])
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class EagerEngine:
    """Implements `engine.EngineClient`: a round begins when `num_streams` requests are in."""

    def __init__(self, num_streams: int, answer: list[int], reports: Connection) -> None:
        self.state: EngineState = "ready"
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.profiler: cProfile.Profile | None = None
        self._num_streams = num_streams
        self._answer = answer
        self._reports = reports
        self._streams: dict[str, Stream] = {}
        self._num_behind = 0
        self._all_took = asyncio.Event()
        self._round: asyncio.Task[None] | None = None

    async def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        stream = self._streams[request.id] = Stream()
        if len(self._streams) == self._num_streams:
            self._round = asyncio.create_task(self._run(list(self._streams)))
        over = False
        while not over:
            await stream.arrived.wait()
            stream.arrived.clear()
            deltas, stream.deltas = stream.deltas, []
            (delta,) = deltas
            over = delta.finish is not None
            if not over:
                yield delta
            self._num_behind -= 1
            if not self._num_behind:
                self._all_took.set()
            if over:
                yield delta

    def cancel(self, request_id: str) -> None:
        raise AssertionError("nothing is cancelled here")

    async def _run(self, ids: list[str]) -> None:
        """One round: every stream gets the whole answer, a token a step."""
        last = len(self._answer) - 1
        frames = [
            encode(
                Deltas(
                    tuple(
                        TokenDelta(
                            request_id,
                            (token_id,),
                            FinishReason.LENGTH if step == last else None,
                        )
                        for request_id in ids
                    )
                )
            )
            for step, token_id in enumerate(self._answer)
        ]
        start_s, start = 0.0, resource.getrusage(resource.RUSAGE_SELF)
        for step, frame in enumerate(frames):
            if step == WARM_UP_STEPS:
                if self.profiler is not None:
                    self.profiler.enable()
                start_s, start = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            if step == last:
                end_s, end = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
                if self.profiler is not None:
                    self.profiler.disable()
                self._reports.send(
                    Figures(
                        (last - WARM_UP_STEPS) * len(ids),
                        end_s - start_s,
                        end.ru_utime - start.ru_utime,
                        end.ru_stime - start.ru_stime,
                    )
                )
            message = decode_to_server(frame)
            assert isinstance(message, Deltas)
            self._num_behind = len(ids)
            self._all_took.clear()
            for delta in message.deltas:
                if stream := self._streams.get(delta.request_id):
                    stream.deltas.append(delta)
                    stream.arrived.set()
            await self._all_took.wait()
        self._streams.clear()


def run_server(arguments: argparse.Namespace, reports: Connection) -> None:
    """The server process: its port, then the figures of each round, go to `reports`."""
    keep_to_core(0)
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_tokenizer(Path(folder))
        checkpoint = read_checkpoint_text(Path(folder))
    with asyncio.Runner(loop_factory=loop_factory(arguments.uvloop)) as runner:
        runner.run(serve_rounds(arguments, checkpoint, reports))


async def serve_rounds(
    arguments: argparse.Namespace, checkpoint: CheckpointText, reports: Connection
) -> None:
    tokenizer = checkpoint.tokenizer
    answer = answer_ids(checkpoint, arguments.tokens)
    engine = EagerEngine(arguments.streams, answer, reports)
    checker = GrammarChecker()
    limits = HttpLimits()
    lifecycle = Lifecycle(engine, request_timeout_s=limits.request_timeout_s)
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
        metrics=Metrics(engine, model_name="tiny"),
        limits=limits,
    )

    async def obey() -> None:
        """Orders come over the same pipe: `profile`, `print`, `stop`."""
        while True:
            order = await asyncio.to_thread(reports.recv)
            if order == "profile":
                engine.profiler = cProfile.Profile()
            elif order == "print":
                assert engine.profiler is not None
                print_profile(engine.profiler, (arguments.tokens - 1 - WARM_UP_STEPS) * arguments.streams)
            else:
                lifecycle.ended.set()
                return
            reports.send(None)

    orders = asyncio.create_task(obey())

    async def start() -> None:
        checker.start()

    async def stop() -> None:
        checker.close()

    await serve(
        app,
        lifecycle=lifecycle,
        start=start,
        stop=stop,
        port=0,
        limits=limits,
        on_listening=lambda address: reports.send(int(address.rpartition(":")[2])),
    )
    await orders


def answer_ids(checkpoint: CheckpointText, num_tokens: int) -> list[int]:
    """Prose as tokens, with the end of the thinking in the middle."""
    ids = checkpoint.tokenizer.encode(" ".join(SENTENCES[:4]))
    prose = (ids * (num_tokens // len(ids) + 1))[:num_tokens]
    end = checkpoint.tokenizer.id_of("</think>")
    assert end is not None
    prose[num_tokens // 2] = end
    return prose


def loop_factory(uses_uvloop: bool):
    if not uses_uvloop:
        return None
    import uvloop

    return uvloop.new_event_loop


def print_profile(profiler: cProfile.Profile, num_tokens: int) -> None:
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


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
        wire.setblocking(False)
        selector.register(wire, selectors.EVENT_READ, bytearray())
    num_open = num_streams
    while num_open:
        for key, _ in selector.select():
            wire, received = key.fileobj, key.data
            assert isinstance(wire, socket.socket)
            data = wire.recv(1 << 16)
            received += data
            if not data:
                num_open -= 1
                selector.unregister(wire)
                wire.close()
                num_events = received.count(b"data: {")
                # All tokens but the closing tag of the thinking make a chunk.
                assert num_events == num_tokens - 1, (num_events, bytes(received[:600]))
                assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), received[-200:]
    selector.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a streamed chat token costs the server.")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=600, help="per stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--uvloop", action="store_true", help="instead of asyncio's own loop")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    reports, theirs = context.Pipe()
    server = context.Process(target=run_server, args=(arguments, theirs))
    server.start()
    keep_to_core(1)
    port: int = reports.recv()
    time.sleep(0.5)

    def run_round() -> Figures:
        read_streams(port, arguments.streams, arguments.tokens)
        return reports.recv()

    figures = [run_round() for _ in range(arguments.rounds)]
    for each in figures:
        print(each)
    if arguments.profile:
        reports.send("profile")
        reports.recv()
        run_round()
        reports.send("print")
        reports.recv()
    reports.send("stop")
    server.join()


if __name__ == "__main__":
    main()
