"""Chat completions: the text of a choice, parsed into reasoning, content and tool calls.

`ChatChoice` turns token deltas into chunk choices and folds them into the whole message, so what is
streamed and what is answered whole cannot differ. Chunks of one engine step are merged while they
are of one kind; the role goes with a choice's first chunk, the finish reason with its last.

Reasoning tokens are those read while the parser is in reasoning and still there afterwards: the
closing tag is not one. With `include_reasoning: false` their text and logprobs are dropped, their
count stays.
"""

import uuid
from collections.abc import Sequence
from typing import Any

from engine import FinishReason, TokenDelta
from server.answer import Draft
from server.generate import MIN_LOGPROB, ChoiceText, TokenInText
from server.logprobs import prompt_logprobs_json, token_name
from server.parse import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    OutputParser,
    Reasoning,
)
from server.tokenizer import Tokenizer
from server.valid import ValidChat


def draft_chat(
    valid: ValidChat, tokenizer: Tokenizer, *, model: str, system_fingerprint: str
) -> Draft:
    """Describe the answer to a chat request."""
    generation = valid.generation
    choices = [ChatChoice(index, valid, tokenizer) for index in range(generation.n)]

    def prompt_fields() -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if valid.extras.token_ids:
            fields["prompt_token_ids"] = generation.prompt_ids
        if valid.extras.num_prompt_logprobs is not None:
            fields["prompt_logprobs"] = choices[0].prompt_logprobs
        return fields

    return Draft(
        id_prefix="chatcmpl-",
        object_whole="chat.completion",
        object_chunk="chat.completion.chunk",
        model=model,
        generations=(generation,),
        choices=choices,
        stream=valid.stream,
        system_fingerprint=system_fingerprint,
        prompt_fields=prompt_fields,
        timings=valid.extras.timings,
    )


class ChatChoice:
    """One choice of a chat answer."""

    def __init__(self, index: int, valid: ValidChat, tokenizer: Tokenizer) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._extras = valid.extras
        self._prompt_ids = valid.generation.prompt_ids
        self._text = ChoiceText(valid.generation, tokenizer, keeps_ids=valid.extras.token_ids)
        self._parser = OutputParser(
            thinking=valid.thinking,
            tools=valid.tools,
            max_calls=None if valid.parallel_tool_calls else 1,
            content_is_bound=valid.content_is_bound,
            bound_calls=valid.bound_calls,
        )
        self._shows_reasoning = valid.include_reasoning
        self._wants_logprobs = valid.logprobs
        self._is_first = True
        self._unsent: list[dict[str, Any]] = []  # logprobs that wait for a chunk to go with
        self.num_reasoning_tokens = 0
        self.prompt_logprobs: list[dict[str, Any] | None] = []

        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[_WholeCall] = []
        self._logprobs: list[dict[str, Any]] = []
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None
        self._stop_reason: str | int | None = None

    @property
    def finish(self) -> FinishReason | None:
        return self._text.finish

    @property
    def num_tokens(self) -> int:
        return self._text.num_tokens

    def push(self, delta: TokenDelta) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = []
        parser = self._parser
        if delta.prompt_logprobs:
            self.prompt_logprobs = prompt_logprobs_json(
                self._prompt_ids,
                delta.prompt_logprobs,
                self._tokenizer,
                num_top=self._extras.num_prompt_logprobs or 0,
            )
        for piece in self._text.push(delta):
            was_reasoning = parser.in_reasoning
            if piece.tokens:
                self._note_tokens(piece.tokens, was_reasoning)
            if piece.text:
                self._merge(parser.feed(piece.text), steps)
            if was_reasoning and piece.is_token and parser.in_reasoning:
                self.num_reasoning_tokens += 1
        finish_reason: str | None = None
        if self._text.finish is not None:
            self._merge(parser.finish(self._text.is_cut), steps)
            finish_reason = self._final_reason(self._text.finish)
            if not steps:
                steps.append({})
        return [self._chunk(step, finish_reason, is_last=step is steps[-1]) for step in steps]

    def _note_tokens(self, tokens: Sequence[TokenInText], was_reasoning: bool) -> None:
        """Keep the logprobs of tokens whose text is about to be read."""
        if self._shows_reasoning or not was_reasoning:
            self._unsent += self._logprobs_json(tokens)

    def _logprobs_json(self, tokens: Sequence[TokenInText]) -> list[dict[str, Any]]:
        as_ids = self._extras.tokens_as_ids
        return [logprob_json(token, self._tokenizer, as_ids=as_ids) for token in tokens]

    def _merge(self, events: Sequence[Any], steps: list[dict[str, Any]]) -> None:
        """Add parser events to the message deltas of this engine step."""
        for event in events:
            last = steps[-1] if steps else {}
            match event:
                case Content(text):
                    if "content" in last:
                        last["content"] += text
                    else:
                        steps.append({"content": text})
                case Reasoning(text):
                    if not self._shows_reasoning:
                        continue
                    if "reasoning" in last:
                        text = last["reasoning"] + text
                        last["reasoning"] = last["reasoning_content"] = text
                    else:
                        steps.append({"reasoning": text, "reasoning_content": text})
                case CallStart(index, name):
                    function = {"name": name, "arguments": ""}
                    call_id = f"call_{uuid.uuid4().hex}"
                    call = {
                        "index": index,
                        "id": call_id,
                        "type": "function",
                        "function": function,
                    }
                    steps.append({"tool_calls": [call]})
                case CallArguments(index, text):
                    calls = last.get("tool_calls")
                    if calls and calls[0]["index"] == index:
                        calls[0]["function"]["arguments"] += text
                    else:
                        call = {"index": index, "function": {"arguments": text}}
                        steps.append({"tool_calls": [call]})
                case CallEnd():
                    pass  # the parser counts them
                case _:
                    raise AssertionError(f"unknown event {type(event).__name__}")

    def _final_reason(self, finish: FinishReason) -> str:
        if finish is FinishReason.STOP and self._parser.has_finished_call:
            return "tool_calls"
        return finish.value

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None, *, is_last: bool
    ) -> dict[str, Any]:
        if self._is_first:
            delta = {"role": "assistant", **delta}
            self._is_first = False
        chunk: dict[str, Any] = {
            "index": self._index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }
        if is_last:
            chunk["finish_reason"] = finish_reason
            if finish_reason is not None:
                chunk["stop_reason"] = self._text.stop_reason
            if self._wants_logprobs and (self._unsent or finish_reason is not None):
                chunk["logprobs"] = {"content": self._unsent}
                self._unsent = []
        if self._extras.token_ids:
            chunk["token_ids"] = self._text.take_ids() if is_last else []
        return chunk

    def fold(self, chunk: dict[str, Any]) -> None:
        delta = chunk["delta"]
        if "content" in delta:
            self._content.append(delta["content"])
        if "reasoning" in delta:
            self._reasoning.append(delta["reasoning"])
        for fragment in delta.get("tool_calls", ()):
            function = fragment["function"]
            if "id" in fragment:
                self._calls.append(_WholeCall(fragment["id"], function["name"]))
            self._calls[fragment["index"]].arguments.append(function["arguments"])
        if chunk["logprobs"] is not None:
            self._logprobs += chunk["logprobs"]["content"]
        self._token_ids += chunk.get("token_ids", ())
        self._finish_reason = chunk["finish_reason"]
        self._stop_reason = chunk["stop_reason"]

    def whole(self) -> dict[str, Any]:
        content: str | None = "".join(self._content)
        reasoning = "".join(self._reasoning) or None
        has_reasoning = self.num_reasoning_tokens > 0 or self._parser.in_reasoning
        if not content and (has_reasoning or self._calls):
            content = None
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content,
            "reasoning_content": reasoning,
            "reasoning": reasoning,
        }
        if self._calls:
            message["tool_calls"] = [call.as_json() for call in self._calls]
        whole: dict[str, Any] = {
            "index": self._index,
            "message": message,
            "logprobs": {"content": self._logprobs} if self._wants_logprobs else None,
            "finish_reason": self._finish_reason,
            "stop_reason": self._stop_reason,
        }
        if self._extras.token_ids:
            whole["token_ids"] = self._token_ids
        return whole


class _WholeCall:
    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.arguments: list[str] = []

    def as_json(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": "".join(self.arguments)}
        return {"id": self.call_id, "type": "function", "function": function}


def logprob_json(
    token: TokenInText, tokenizer: Tokenizer, *, as_ids: bool = False
) -> dict[str, Any]:
    """One entry of `logprobs.content`; `as_ids` names tokens by their ids."""
    return {
        "token": token_name(token.id, tokenizer, as_ids=as_ids),
        "logprob": max(token.logprobs.logprob, MIN_LOGPROB),
        "bytes": list(tokenizer.token_bytes(token.id)),
        "top_logprobs": [
            {
                "token": token_name(token_id, tokenizer, as_ids=as_ids),
                "logprob": max(logprob, MIN_LOGPROB),
                "bytes": list(tokenizer.token_bytes(token_id)),
            }
            for token_id, logprob in token.logprobs.top
        ],
    }
