"""What is left of a request once `validate` is through with it. After this nobody checks again.

Values here are complete: defaults are filled in, the prompt
is tokenised, limits hold, and stop strings and ids are final.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from engine import Media, Request, SamplingParams
from server.repetition import RepetitionRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One prompt to continue `n` times, and how its text is cut; shared by chat and completions."""

    prompt_ids: tuple[int, ...]
    media: tuple[Media, ...] = ()  # the pictures in it; the choices share them
    sampling: SamplingParams  # of choice 0
    n: int = 1
    stop: tuple[str, ...] = ()  # stop strings, none empty
    include_stop: bool = False  # keep the matched stop string or stop token in the text
    eos_ids: frozenset[int] = frozenset()  # the model's own ends: `stop_reason` stays null
    skip_special_tokens: bool = True
    priority: int = 0
    boundaries: tuple[int, ...] = ()  # where prompts that begin alike may part: see `Request`
    cache_salt: str | None = None
    repetition: RepetitionRule | None = None  # a loop that ends the output

    def request(self, request_id: str, choice: int) -> Request:
        """The engine request of one choice: choices differ in their seed only."""
        seed = self.sampling.seed if choice == 0 else mix_seed(self.sampling.seed, choice)
        return Request(
            id=request_id,
            prompt_ids=self.prompt_ids,
            media=self.media,
            sampling=msgspec.structs.replace(self.sampling, seed=seed),
            priority=self.priority,
            boundaries=self.boundaries,
            cache_salt=self.cache_salt,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExtras:
    """What the answer tells besides, of its tokens and times."""

    token_ids: bool = False  # the ids of output and prompt
    tokens_as_ids: bool = False  # tokens of logprobs as `token_id:N`
    num_prompt_logprobs: int | None = None  # `sampling.num_prompt_logprobs` is at least that
    timings: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidChat:
    generation: Generation
    stream: StreamOptions | None  # None: one whole response
    # The declared tools as the client sent them (type/function wrapper included). None: no tools,
    # or `tool_choice: "none"`: then all text is verbatim.
    tools: tuple[dict[str, Any], ...] | None
    thinking: bool  # the prompt ends inside an open <think> block
    content_is_bound: bool = False  # by a grammar
    bound_calls: frozenset[str] = frozenset()  # tools whose calls are
    include_reasoning: bool = True
    parallel_tool_calls: bool = True
    logprobs: bool = False  # `generation.sampling.num_logprobs` is then set
    extras: TokenExtras = TokenExtras()


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidCompletion:
    generations: tuple[Generation, ...]  # one per prompt
    prompt_texts: tuple[str, ...]  # one per prompt, for `echo`
    stream: StreamOptions | None
    echo: bool = False
    num_logprobs: int | None = None
    extras: TokenExtras = TokenExtras()


def mix_seed(seed: int, choice: int) -> int:
    """A well-spread int64 from (seed, choice): one round of splitmix64 (Steele et al., 2014)."""
    mask = (1 << 64) - 1
    z = (seed + choice * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return z - (1 << 64) if z >> 63 else z
