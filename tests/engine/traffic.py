"""Prompts and wishes of common requests to a tiny model, and the ways to serve them."""

import random
from collections.abc import Sequence

from engine.loop import Launcher
from engine.request import Request
from tests.checkpoints import NUM_REAL_TOKENS
from tests.engine.built_tiny import NUM_SEQS
from tests.engine.inprocess import Outcome, serve, serve_again

LENGTHS = (1, 2, 63, 64, 65, 100, 128, 129, 200, 420, 700)
NUM_OUTPUT = 80

COMMON = (
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 20},
    {"top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.2},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3, "top_p": 0.95},
    {"num_logprobs": 3, "top_k": 5},
    {"logit_bias": ((3, 2.0), (4, -100.0)), "stop_token_ids": (5,), "min_tokens": 9},
)


def prompts(seed: int) -> dict[str, list[int]]:
    rng = random.Random(seed)
    return {
        f"r{i}": [rng.randrange(NUM_REAL_TOKENS) for _ in range(length)]
        for i, length in enumerate(LENGTHS)
    }


def served(runner: Launcher, requests: Sequence[Request], how: str) -> Outcome:
    chunk = {"together": 1024, "chunked": 80, "preempted": 512, "cached": 80}[how]
    num_pages = 22 if how == "preempted" else 80
    if how == "cached":
        return serve_again(
            runner, requests, num_pages=80, num_slots=NUM_SEQS, max_step_tokens=chunk
        )
    outcome = serve(
        runner, requests, num_pages=num_pages, num_slots=NUM_SEQS, max_step_tokens=chunk
    )
    assert how != "preempted" or outcome.num_preemptions > 0
    return outcome
