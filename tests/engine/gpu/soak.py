"""Rounds of mixed traffic, preemptions among it, until the time is up.

    python -m tests.engine.gpu.soak CHECKPOINT [--seconds 300] [--device cuda]

Ends with an error if a text changes, a request gets lost, or memory is not given back.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from engine.request import SamplingParams
from engine.runner.runner import Runner
from tests.engine.built_tiny import build_tiny
from tests.engine.inprocess import greedy
from tests.engine.traffic import COMMON, NUM_OUTPUT, prompts, served

WAYS = ("together", "preempted", "chunked")
SLACK_BYTES = 8 << 20


def soak(runner: Runner, seconds: float, held_bytes: Callable[[], int]) -> int:
    """The number of rounds: each way twice, at least. `held_bytes`: of the device's memory."""
    deadline = time.monotonic() + seconds
    first: dict[str, list[int]] = {}
    held = num_rounds = 0
    while time.monotonic() < deadline or num_rounds < 2 * len(WAYS):
        requests = [
            msgspec.structs.replace(
                greedy(name, ids, NUM_OUTPUT),
                sampling=SamplingParams(max_tokens=NUM_OUTPUT, seed=i, **COMMON[i % len(COMMON)]),
            )
            for i, (name, ids) in enumerate(prompts(11).items())
        ]
        way = WAYS[num_rounds % len(WAYS)]
        outcome = served(runner, requests, way)
        if way == "together":
            texts = {request.id: outcome.ids(request.id) for request in requests}
            first = first or texts
            assert texts == first, "the same requests got other texts"
        num_rounds += 1
        if num_rounds == len(WAYS):
            held = held_bytes()
        elif num_rounds > len(WAYS):
            assert held_bytes() <= held + SLACK_BYTES, "memory was not given back"
    return num_rounds


def held_on_gpu() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["active_bytes.all.current"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    runner = build_tiny(options.checkpoint, dtype, device=options.device).runner
    assert isinstance(runner, Runner)
    num_rounds = soak(runner, options.seconds, held_on_gpu if on_gpu else lambda: 0)
    runner.stop()
    print(f"{num_rounds} rounds")


if __name__ == "__main__":
    main()
