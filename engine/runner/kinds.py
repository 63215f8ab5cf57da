"""Requests that between them need every kernel there is: a GPU's warm-up.

Triton compiles a kernel when it is first asked for, which takes up to two seconds, and what it is
asked for depends on the requests that share a step. Each way to draw a token has kernels of its
own, with and without XTC. Penalties, masks of grammars and biases share one launch, which is
another kernel for each set of them: so each request is to be served alone.

Those of the model's products depend on how many rows a step has, those of the head on how many of
them are scored. One row and a full step need some; prompts of a few lengths between, the others.
"""

from itertools import cycle
from typing import Any

import msgspec

from engine.grammar import GrammarSpec
from engine.request import SamplingParams

SIZES = (64, 256, 2048)  # tokens: up to 64 rows, up to 256, and so many that experts get 17 to 64

_GREEDY = SamplingParams(max_tokens=1, seed=0, temperature=0.0)
_XTC = {"xtc_probability": 1.0, "xtc_threshold": 0.1}
_DRAWS: tuple[dict[str, Any], ...] = tuple(
    {"temperature": 1.0, **draw, **xtc}
    for draw in ({"top_k": 20}, {"top_k": 100}, {"top_p": 0.9}, {})
    for xtc in ({}, _XTC)
)
_PENALTIES = {"presence_penalty": 0.5}
_BIAS = {"logit_bias": ((1, 0.5),)}
_GRAMMAR = {"grammar": GrammarSpec(grammar="start: /(.|\\n)*/")}
_CONSTRAINTS: tuple[dict[str, Any], ...] = (
    {"num_logprobs": 5},
    {"num_logprobs": 0, "num_prompt_logprobs": 1},
    {"logit_bias": ((1, -100.0),)},
    {"logit_bias": ((1, 100.0),)},
    {"allowed_token_ids": (1, 2)},
    {"bad_words": ((1,), (1, 2))},
    {"stop_token_ids": (1,), "min_tokens": 1},
    {"dry_multiplier": 1.0},
)


def every_kind(*, has_grammars: bool) -> tuple[SamplingParams, ...]:
    """Each generates one token."""
    changes: list[dict[str, Any]] = [{}, _PENALTIES, _BIAS, _PENALTIES | _BIAS]
    if has_grammars:
        changes += [change | _GRAMMAR for change in changes]
    draws = [draw | change for draw, change in zip(({}, *_DRAWS), cycle(changes), strict=False)]
    return tuple(msgspec.structs.replace(_GREEDY, **wish) for wish in (*draws, *_CONSTRAINTS))
