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
from server.logprobs import prompt_logprobs_json, token_name
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
            choices.append(CompletionChoice(len(choices), valid, generation, tokenizer, prompt))
    return Draft(
        id_prefix="cmpl-",
        object_whole="text_completion",
        object_chunk="text_completion",
        model=model,
        generations=valid.generations,
        choices=choices,
        stream=valid.stream,
        system_fingerprint=system_fingerprint,
        timings=valid.extras.timings,
    )


class CompletionChoice:
    """One choice of a completion answer."""

    num_reasoning_tokens = 0

    def __init__(
        self,
        index: int,
        valid: ValidCompletion,
        generation: Generation,
        tokenizer: Tokenizer,
        echoed_prompt: str | None,
    ) -> None:
        self._index = index
        self._extras = valid.extras
        self._prompt_ids = generation.prompt_ids
        self._tokenizer = tokenizer
        self._echoed_prompt = echoed_prompt
        self._num_logprobs = valid.num_logprobs
        self._text = ChoiceText(
            generation, tokenizer, keeps_ids=valid.extras.token_ids, shows_hidden=True
        )
        self._offset = len(echoed_prompt or "")
        self._is_first = True
        self._has_sent = False  # a chunk
        self._unsent = _empty_logprobs()

        self._parts: list[str] = []
        self._logprobs = _empty_logprobs()
        self._token_ids: list[int] = []
        self._prompt_logprobs: list[dict[str, Any] | None] = []
        self._last: dict[str, Any] = {}

    @property
    def finish(self) -> FinishReason | None:
        return self._text.finish

    @property
    def num_tokens(self) -> int:
        return self._text.num_tokens

    def push(self, delta: TokenDelta) -> list[dict[str, Any]]:
        text = ""
        is_first, self._is_first = self._is_first, False
        if is_first:
            text = self._echo(delta)
            self._note_prompt_logprobs(delta)
        for piece in self._text.push(delta):
            text += piece.text
            for token in piece.tokens:
                self._add_logprobs(token.id, self._offset + token.start, token.logprobs)
        finish = self._text.finish
        if not text and finish is None:
            return []
        logprobs: dict[str, list[Any]] | None = None
        if self._num_logprobs is not None:
            logprobs, self._unsent = self._unsent, _empty_logprobs()
        chunk: dict[str, Any] = {
            "index": self._index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if finish is None else finish.value,
            "stop_reason": None if finish is None else self._text.stop_reason,
        }
        if self._extras.token_ids:
            chunk["token_ids"] = self._text.take_ids()
            if not self._has_sent:
                chunk["prompt_token_ids"] = self._prompt_ids
        self._has_sent = True
        return [chunk]

    def fold(self, chunk: dict[str, Any]) -> None:
        self._parts.append(chunk["text"])
        if chunk["logprobs"] is not None:
            for name in _LOGPROB_LISTS:
                self._logprobs[name] += chunk["logprobs"][name]
        self._token_ids += chunk.get("token_ids", ())
        self._last = chunk

    def whole(self) -> dict[str, Any]:
        whole = {
            "index": self._index,
            "text": "".join(self._parts),
            "logprobs": self._logprobs if self._num_logprobs is not None else None,
            "finish_reason": self._last["finish_reason"],
            "stop_reason": self._last["stop_reason"],
        }
        if self._extras.token_ids:
            whole["token_ids"] = self._token_ids
            whole["prompt_token_ids"] = self._prompt_ids
        if self._extras.num_prompt_logprobs is not None:
            whole["prompt_logprobs"] = self._prompt_logprobs
        return whole

    def _note_prompt_logprobs(self, delta: TokenDelta) -> None:
        num_top = self._extras.num_prompt_logprobs
        if num_top is not None:
            self._prompt_logprobs = prompt_logprobs_json(
                self._prompt_ids, delta.prompt_logprobs, self._tokenizer, num_top=num_top
            )

    def _echo(self, delta: TokenDelta) -> str:
        """The prompt as it is shown first; empty without `echo`."""
        if self._echoed_prompt is None:
            return ""
        if self._num_logprobs is not None:
            detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=False)
            echo = ""
            for token_id, logprobs in zip(self._prompt_ids, delta.prompt_logprobs, strict=True):
                self._add_logprobs(token_id, len(echo), logprobs)
                echo += detokenizer.push((token_id,))
            echo += detokenizer.flush()
            # The tokenizer composes characters: the tokens may say less than the prompt did.
            self._echoed_prompt = echo
            self._offset = len(echo)
        return self._echoed_prompt

    def _add_logprobs(self, token_id: int, offset: int, logprobs: TokenLogprobs | None) -> None:
        lists = self._unsent
        as_ids = self._extras.tokens_as_ids
        token = token_name(token_id, self._tokenizer, as_ids=as_ids)
        lists["tokens"].append(token)
        lists["text_offset"].append(offset)
        if logprobs is None:  # the first prompt token: nothing came before it
            lists["token_logprobs"].append(None)
            lists["top_logprobs"].append(None)
            return
        logprob = max(logprobs.logprob, MIN_LOGPROB)
        top: dict[str, float] = {}
        for top_id, top_logprob in logprobs.top[: self._num_logprobs]:
            name = token_name(top_id, self._tokenizer, as_ids=as_ids)
            top.setdefault(name, max(top_logprob, MIN_LOGPROB))
        top[token] = logprob  # distinct tokens may look alike: the one that is there wins
        lists["token_logprobs"].append(logprob)
        lists["top_logprobs"].append(top)


def _empty_logprobs() -> dict[str, list[Any]]:
    return {name: [] for name in _LOGPROB_LISTS}
