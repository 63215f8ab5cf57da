"""Sampling parameters of a request: the checkpoint's defaults filled in, every id in range."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from engine import SamplingParams
from server.checkpoint_text import GenerationDefaults
from server.dry_breakers import DryBreakers
from server.errors import BadRequest
from server.protocol import MAX_BAD_WORD_CHARS, MAX_BREAKER_CHARS, SamplingFields
from server.repetition import RepetitionRule
from server.tokenizer import Tokenizer

# Past these, fp32 logits overflow when divided or multiplied. A temperature this low is the argmax.
GREEDY_TEMPERATURE = 1e-5
MIN_REPETITION_PENALTY = 1e-5
MAX_REPETITION_PENALTY = 1e5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRules:
    tokenizer: Tokenizer
    vocab_size: int  # rows of the embedding: every id a client may name is below
    defaults: GenerationDefaults
    eos_ids: frozenset[int]
    breakers: DryBreakers
    seeds: random.Random  # of requests that name none; drawing is atomic under the GIL

    def seed_of(self, request: SamplingFields) -> int:
        return self.seeds.getrandbits(63) if request.seed is None else request.seed

    def sampling(
        self,
        request: SamplingFields,
        *,
        max_tokens: int,
        min_tokens: int,
        num_logprobs: int | None,
        num_prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """The parameters of choice 0; `max_tokens` and `min_tokens` fit the window already."""
        left_out = self.defaults.sampling.keys() - request.model_fields_set
        request = request.model_copy(update={k: self.defaults.sampling[k] for k in left_out})
        temperature = request.temperature
        if temperature is None:
            temperature = self.defaults.temperature
        greedy = temperature < GREEDY_TEMPERATURE
        top_k = max(request.top_k, 0)
        stop_token_ids = self.checked_ids(request.stop_token_ids, "stop_token_ids")
        if not request.ignore_eos:
            stop_token_ids = tuple(sorted(self.eos_ids.union(stop_token_ids)))
        sampling = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            seed=self.seed_of(request),
            temperature=0.0 if greedy else temperature,
            top_k=0 if greedy or top_k >= self.vocab_size else top_k,
            top_p=1.0 if greedy else request.top_p,
            min_p=0.0 if greedy else request.min_p,
            repetition_penalty=min(
                max(request.repetition_penalty, MIN_REPETITION_PENALTY), MAX_REPETITION_PENALTY
            ),
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            stop_token_ids=stop_token_ids,
            logit_bias=self._logit_bias(request.logit_bias),
            allowed_token_ids=self._allowed_ids(request.allowed_token_ids),
            bad_words=self._bad_words(request.bad_words),
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
            xtc_probability=0.0 if greedy else request.xtc_probability,
            xtc_threshold=request.xtc_threshold,
        )
        if request.dry_multiplier and request.dry_penalty_last_n:
            sampling = self._with_dry(sampling, request)
        self._check_choice_left(sampling)
        return sampling

    def repetition(self, request: SamplingFields) -> RepetitionRule | None:
        """What loop ends the output; None: none does."""
        asked = request.repetition_detection
        if asked is None or asked.max_pattern_size == 0:
            return None
        param = "repetition_detection"
        if asked.min_pattern_size > asked.max_pattern_size:
            raise BadRequest(
                f"{param}.min_pattern_size must be at most max_pattern_size", param=param
            )
        if asked.min_count < 2:
            raise BadRequest(f"{param}.min_count must be at least 2", param=param)
        return RepetitionRule(
            min_size=max(asked.min_pattern_size, 1),
            max_size=asked.max_pattern_size,
            min_count=asked.min_count,
        )

    def _with_dry(self, sampling: SamplingParams, request: SamplingFields) -> SamplingParams:
        texts = tuple(sorted(set(request.dry_sequence_breakers)))
        if not all(texts) or max(map(len, texts), default=0) > MAX_BREAKER_CHARS:
            raise BadRequest(
                f"dry_sequence_breakers must hold strings of 1 to {MAX_BREAKER_CHARS} characters",
                param="dry_sequence_breakers",
            )
        try:
            breaker_ids, breakers = self.breakers.tokens_of(texts)
        except ValueError as error:
            raise BadRequest(
                f"dry_sequence_breakers are {error}", param="dry_sequence_breakers"
            ) from None
        return msgspec.structs.replace(
            sampling,
            dry_multiplier=request.dry_multiplier,
            dry_base=request.dry_base,
            dry_allowed_length=request.dry_allowed_length,
            dry_last_n=request.dry_penalty_last_n,
            dry_breaker_ids=breaker_ids,
            dry_breakers=breakers,
        )

    def checked_ids(self, token_ids: Iterable[int], param: str) -> tuple[int, ...]:
        """The ids, sorted, each once. Raises BadRequest if one is no row of the embedding."""
        checked = tuple(sorted(set(token_ids)))
        self.check_range(checked, param)
        return checked

    def check_range(self, token_ids: Sequence[int], param: str) -> None:
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= self.vocab_size):
            raise BadRequest(
                f"{param} must hold token ids from 0 to {self.vocab_size - 1}", param=param
            )

    def _logit_bias(self, biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
        by_id: dict[int, float] = {}
        for key, bias in biases.items():
            # Length first: int() of a long string is slow, and isdigit alone admits other scripts.
            if (
                len(key) > 10
                or not (key.isascii() and key.isdigit())
                or not (int(key) < self.vocab_size)
            ):
                raise BadRequest(
                    f"logit_bias keys must be token ids from 0 to {self.vocab_size - 1}",
                    param="logit_bias",
                )
            by_id[int(key)] = float(bias)
        return tuple(sorted(by_id.items()))

    def _allowed_ids(self, token_ids: list[int] | None) -> tuple[int, ...] | None:
        if token_ids is None:
            return None
        if not token_ids:
            raise BadRequest("allowed_token_ids must not be empty", param="allowed_token_ids")
        return self.checked_ids(token_ids, "allowed_token_ids")

    def _bad_words(self, words: list[str]) -> tuple[tuple[int, ...], ...]:
        """Each word's ids as they are and after a space."""
        sequences: dict[tuple[int, ...], None] = {}  # a set in order
        for word in words:
            if not word.strip():
                raise BadRequest("bad_words must not hold an empty string", param="bad_words")
            if len(word) > MAX_BAD_WORD_CHARS:
                raise BadRequest(
                    f"bad_words must not hold a string longer than {MAX_BAD_WORD_CHARS} characters",
                    param="bad_words",
                )
            sequences[tuple(self.tokenizer.encode(word))] = None
            sequences[tuple(self.tokenizer.encode(" " + word.lstrip()))] = None
        return tuple(sequences)

    def _check_choice_left(self, sampling: SamplingParams) -> None:
        """Refuse bans that could leave no token to sample at some step."""
        banned = {words[-1] for words in sampling.bad_words}
        if sampling.min_tokens:
            banned.update(sampling.stop_token_ids)
        num_real = self.tokenizer.num_real_tokens
        allowed = sampling.allowed_token_ids
        if allowed is None and len(banned) < num_real:
            return
        candidates = range(num_real) if allowed is None else allowed
        if not any(i < num_real and i not in banned for i in candidates):
            raise BadRequest(
                "allowed_token_ids, bad_words and min_tokens leave no token to generate",
                param="allowed_token_ids" if allowed is not None else "bad_words",
            )
