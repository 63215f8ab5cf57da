"""Completions: raw text of several prompts times n, with echo and the legacy logprobs shape.

`CompletionChoice` turns token deltas into chunk choices and folds them into the whole, as chat
does. With `echo` the prompt's text and tokens come first; its logprobs come from the engine's first
delta. Text offsets count characters of the choice's text, the echoed prompt included.
"""

from typing import Any

from engine import FinishReason, TokenDelta, TokenLogprobs
from server.answer import Draft
from server.detokenize import Detokenizer
from server.generate import MIN_LOGPROB, ChoiceText
from server.tokenizer import Tokenizer
from server.valid import Generation, ValidCompletion

_LOGPROB_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def draft_completion(
    valid: ValidCompletion, tokenizer: Tokenizer, *, model: str, system_fingerprint: str
) -> Draft:
    """Describe the answer to a completion request."""
    choices: list[CompletionChoice] = []
    for generation, prompt_text in zip(valid.generations, valid.prompt_texts, strict=True):
        for _ in range(generation.n):
            prompt = prompt_text if valid.echo else None
            choices.append(
                CompletionChoice(
                    len(choices), generation, tokenizer, prompt, valid.num_logprobs is not None
                )
            )
    return Draft(
        id_prefix="cmpl-",
        object_whole="text_completion",
        object_chunk="text_completion",
        model=model,
        generations=valid.generations,
        choices=choices,
        stream=valid.stream,
        system_fingerprint=system_fingerprint,
    )


class CompletionChoice:
    """One choice of a completion answer."""

    num_reasoning_tokens = 0

    def __init__(
        self,
        index: int,
        generation: Generation,
        tokenizer: Tokenizer,
        echoed_prompt: str | None,
        wants_logprobs: bool,
    ) -> None:
        self._index = index
        self._prompt_ids = generation.prompt_ids
        self._tokenizer = tokenizer
        self._echoed_prompt = echoed_prompt
        self._wants_logprobs = wants_logprobs
        self._text = ChoiceText(generation, tokenizer)
        self._offset = len(echoed_prompt or "")
        self._is_first = True
        self._unsent = _empty_logprobs()

        self._parts: list[str] = []
        self._logprobs = _empty_logprobs()
        self._last: dict[str, Any] = {}

    @property
    def finish(self) -> FinishReason | None:
        return self._text.finish

    @property
    def num_tokens(self) -> int:
        return self._text.num_tokens

    def push(self, delta: TokenDelta) -> list[dict[str, Any]]:
        text = ""
        if self._is_first:
            self._is_first = False
            text = self._echo(delta)
        for piece in self._text.push(delta):
            text += piece.text
            for token in piece.tokens:
                self._add_logprobs(token.id, self._offset + token.start, token.logprobs)
        finish = self._text.finish
        if not text and finish is None:
            return []
        logprobs: dict[str, list[Any]] | None = None
        if self._wants_logprobs:
            logprobs, self._unsent = self._unsent, _empty_logprobs()
        return [
            {
                "index": self._index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": None if finish is None else finish.value,
                "stop_reason": None if finish is None else self._text.stop_reason,
            }
        ]

    def fold(self, chunk: dict[str, Any]) -> None:
        self._parts.append(chunk["text"])
        if chunk["logprobs"] is not None:
            for name in _LOGPROB_LISTS:
                self._logprobs[name] += chunk["logprobs"][name]
        self._last = chunk

    def whole(self) -> dict[str, Any]:
        return {
            "index": self._index,
            "text": "".join(self._parts),
            "logprobs": self._logprobs if self._wants_logprobs else None,
            "finish_reason": self._last["finish_reason"],
            "stop_reason": self._last["stop_reason"],
        }

    def _echo(self, delta: TokenDelta) -> str:
        """The prompt as it is shown first; empty without `echo`."""
        if self._echoed_prompt is None:
            return ""
        if self._wants_logprobs:
            detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=False)
            offset = 0
            for token_id, logprobs in zip(self._prompt_ids, delta.prompt_logprobs, strict=True):
                self._add_logprobs(token_id, offset, logprobs)
                offset += len(detokenizer.push((token_id,)))
        return self._echoed_prompt

    def _add_logprobs(self, token_id: int, offset: int, logprobs: TokenLogprobs | None) -> None:
        lists = self._unsent
        token = self._tokenizer.token_str(token_id)
        lists["tokens"].append(token)
        lists["text_offset"].append(offset)
        if logprobs is None:  # the first prompt token: nothing came before it
            lists["token_logprobs"].append(None)
            lists["top_logprobs"].append(None)
            return
        logprob = max(logprobs.logprob, MIN_LOGPROB)
        top: dict[str, float] = {}
        for top_id, top_logprob in logprobs.top:
            top.setdefault(self._tokenizer.token_str(top_id), max(top_logprob, MIN_LOGPROB))
        top[token] = logprob  # distinct tokens may look alike: the one that is there wins
        lists["token_logprobs"].append(logprob)
        lists["top_logprobs"].append(top)


def _empty_logprobs() -> dict[str, list[Any]]:
    return {name: [] for name in _LOGPROB_LISTS}
