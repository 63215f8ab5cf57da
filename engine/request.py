"""What a caller asks of the engine, and what it gets back: token ids, never text.

Everything here is frozen, crosses the process boundary as msgpack, and was validated by the
server before it got here: the engine does not check it again.
"""

import hashlib
from enum import StrEnum

import msgspec

from engine.grammar.spec import GrammarSpec


class FinishReason(StrEnum):
    STOP = "stop"  # the last token is one of `stop_token_ids`
    LENGTH = "length"  # `max_tokens` tokens were generated


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How tokens are chosen. Field meanings and ranges: the table in the README's API section.

    Order of operations on a row of fp32 logits: ids at or above the engine's `num_real_tokens` are
    banned; the log-softmax of that is what `num_logprobs` reports; then the penalties (repetition,
    presence and frequency, DRY), then `grammar`, `logit_bias`, `allowed_token_ids`, `bad_words`,
    (before `min_tokens`) the ban of `stop_token_ids` and the end of a spent `thinking_budget`; then
    temperature, then top_k, top_p, min_p and XTC, each on what the one before left. Temperature 0
    is the argmax before temperature.
    """

    max_tokens: int  # generated tokens at most; 0 scores the prompt only
    seed: int  # int64; always set: the server draws one for requests without
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    presence_penalty: float = 0.0  # over generated tokens
    frequency_penalty: float = 0.0  # over generated tokens
    stop_token_ids: tuple[int, ...] = ()  # EOS ids included, unless the caller ignores EOS
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()  # id sequences that are never completed
    dry_multiplier: float = 0.0  # 0: off; see `kernels.sampling.dry`
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_last_n: int = -1  # the last tokens of prompt and output; -1: all
    dry_breaker_ids: tuple[int, ...] = ()  # tokens that break a repetition
    dry_breakers: tuple[tuple[int, ...], ...] = ()  # sequences of several tokens that do
    xtc_probability: float = 0.0  # 0: off; see `kernels.sampling.xtc`
    xtc_threshold: float = 0.1
    # After so many generated tokens that did not end the thinking, `thinking_end_id` is generated,
    # against every other wish, as soon as `grammar` allows it. None: never. What ends the thinking
    # is the text of that token, or the two tags that open a call, where they are given.
    thinking_budget: int | None = None
    thinking_end_id: int = -1
    thinking_call_tags: tuple[str, str] | None = None
    grammar: GrammarSpec | None = None  # what the output has to look like
    num_logprobs: int | None = None  # None: none; 0: the sampled token's; k: the top k besides
    num_prompt_logprobs: int | None = None  # the same, of every prompt token


class Media(msgspec.Struct, frozen=True, array_like=True, weakref=True):
    """A picture in a prompt: an image, or one temporal patch of a video.

    Its placeholder tokens stand at `prompt_ids[start : start + n]`, where n is the number of merged
    patches, (height / 32) * (width / 32) for the released models. Sides are multiples of the
    tower's merged patch. A video is several of these, with text between them.
    """

    start: int
    num_frames: int  # 1, an image; or the tower's temporal patch size, of a video
    height: int  # pixels
    width: int
    pixels: bytes  # uint8 RGB, [num_frames, height, width, 3]
    digest: bytes  # the same for the same pixels in the same shape, wherever the picture stands

    @classmethod
    def of(cls, start: int, num_frames: int, height: int, width: int, pixels: bytes) -> "Media":
        """With its digest, which takes a second for each gigabyte of pixels."""
        shape = f"{num_frames},{height},{width};".encode()
        digest = hashlib.blake2b(shape, digest_size=32)
        digest.update(pixels)
        return cls(start, num_frames, height, width, pixels, digest.digest())


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `id` is the server's own and unique; `n` choices are n requests."""

    id: str
    prompt_ids: tuple[int, ...]  # at least one
    sampling: SamplingParams
    media: tuple[Media, ...] = ()  # in prompt order, not overlapping; only for models with a tower
    priority: int = 0  # lower runs first; ties in order of arrival
    # Rising token counts where other prompts may part from this one: the ends of system prompt and
    # turns. Hints: what is computed does not depend on them.
    boundaries: tuple[int, ...] = ()
    cache_salt: str | None = None  # prefixes are shared under equal salts only
    # How many more may have to wait where this one is let in: all of an answer are counted with its
    # first, and none with the others, so that they are taken together or not at all.
    seats: int = 1

    @property
    def max_total_tokens(self) -> int:
        return len(self.prompt_ids) + self.sampling.max_tokens


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities of one position under the raw model distribution."""

    logprob: float  # of the token that is there
    rank: int  # 1: the most likely token
    top: tuple[tuple[int, float], ...]  # (token id, logprob), falling, `num_logprobs` of them


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """What became known of one request in one step.

    A request that is not cancelled ends in exactly one delta with a `finish`, or in one error.
    """

    request_id: str
    token_ids: tuple[int, ...]  # new output tokens, a final stop token included; may be empty
    finish: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per new token when asked for
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()  # in the first delta; [0] is None
    num_cached_tokens: int = 0  # prompt tokens that were not computed; in the first delta
    num_saved_tokens: int = 0  # those that were, and are cached from now on; in the first delta
    queue_s: float = 0.0  # from submit to the first planned step; in the first delta
