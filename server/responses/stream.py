"""Chat chunks -> the events of a response, and the response object itself.

A response that is not streamed goes through the same calls, and its events are dropped: so what is
streamed and what is answered whole cannot differ. The order, for each item in turn:

    response.created  response.in_progress
      output_item.added
        message:    content_part.added  output_text.delta...  output_text.done  content_part.done
        call:       function_call_arguments.delta...  .done
        reasoning:  reasoning_text.delta...  .done
      output_item.done
    response.completed | response.incomplete | response.failed

One that runs in the background begins with `response.created response.queued`, and
`response.in_progress` is when its turn has come. A response that was cancelled ends with
`response.incomplete`, its status being `cancelled`: there is no event of its own for that. No
`error` comes after `response.failed`: it has an `error` of its own, at which OpenAI's SDKs raise.

An item ends when the next begins or the answer ends. Every item ends `completed` but the last of a
cut answer, unless that is a call whose arguments are whole. An answer without any text is one empty
message. Numbers count from 0 without gaps.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from server import sse
from server.errors import ErrorAnswer
from server.responses.items import CallOutput, MessageOutput, OutputItem, ReasoningOutput, Status

Event = dict[str, Any]
Item = TypeVar("Item", bound=OutputItem)

_encode = msgspec.json.Encoder().encode


def encoded(events: Sequence[Event]) -> bytes:
    """Events as they are sent, each with its name."""
    return b"".join(
        [b"event: %s\n%s" % (event["type"].encode(), sse.event(_encode(event))) for event in events]
    )


class ResponseEvents:
    """One response as it comes to be. Each method returns the events it caused."""

    def __init__(self, response_id: str, created_at: int, fields: dict[str, Any]) -> None:
        """`fields` is the rest of the response object, as the request decides it."""
        self._response: dict[str, Any] = {
            "id": response_id,
            "object": "response",
            "created_at": created_at,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            **fields,
            "output": [],
            "usage": None,
        }
        self._num_events = 0
        self._items: list[OutputItem] = []
        self._is_cut = False

    @property
    def items(self) -> Sequence[OutputItem]:
        return self._items

    def open(self) -> list[Event]:
        response = msgspec.Raw(_encode(self._response))  # it may repeat many tools
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def queue(self) -> list[Event]:
        """Begin a response that runs in the background; `start` is when it does."""
        self._response["status"] = "queued"
        return [
            self._event("response.created", response=self.response()),
            self._event("response.queued", response=self.response()),
        ]

    def start(self) -> list[Event]:
        self._response["status"] = "in_progress"
        return [self._event("response.in_progress", response=self.response())]

    def push(self, chunk: dict[str, Any]) -> list[Event]:
        """Take one chunk of a chat choice."""
        delta: dict[str, Any] = chunk["delta"]
        events: list[Event] = []
        if "reasoning" in delta:
            self._add_reasoning(delta["reasoning"], events)
        if "content" in delta:
            self._add_text(delta["content"], delta.get("logprobs", []), events)
        for fragment in delta.get("tool_calls", ()):
            self._add_call(fragment, events)
        if chunk["finish_reason"] is not None:
            self._is_cut = chunk["finish_reason"] == "length"
        return events

    def close(self, usage: dict[str, Any], more: dict[str, Any]) -> list[Event]:
        """End the answer; `response` is then the final object, with the fields in `more`."""
        events: list[Event] = []
        if not self._items:
            self._add_text("", [], events)
        self._end_item("incomplete" if self._is_cut else "completed", events)
        self._response["status"] = "incomplete" if self._is_cut else "completed"
        if self._is_cut:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        self._response |= {"usage": usage, **more}
        events.append(self._event(f"response.{self._response['status']}", response=self.response()))
        return events

    def cancel(self, usage: dict[str, Any]) -> list[Event]:
        """End the answer where it stands, because nobody wants more of it."""
        events: list[Event] = []
        self._end_item("incomplete", events)
        self._response["status"] = "cancelled"
        self._response["usage"] = usage
        events.append(self._event("response.incomplete", response=self.response()))
        return events

    def fail(self, error: ErrorAnswer) -> list[Event]:
        """End the answer with an error, told in both places where clients look for it."""
        if self._items and self._items[-1].status == "in_progress":
            self._items[-1].status = "incomplete"
        self._response["status"] = "failed"
        self._response["error"] = {"code": error.code or error.type, "message": error.message}
        return [self._event("response.failed", response=self.response(), error=error_facts(error))]

    def response(self) -> dict[str, Any]:
        return {**self._response, "output": [item.as_json() for item in self._items]}

    def _add_reasoning(self, text: str, events: list[Event]) -> None:
        item = self._current(ReasoningOutput)
        if item is None:
            item = ReasoningOutput(len(self._items))
            self._begin(item, events)
        item.add(text)
        place = {**item.place, "content_index": 0}
        events.append(self._event("response.reasoning_text.delta", **place, delta=text))

    def _add_text(self, text: str, logprobs: list[dict[str, Any]], events: list[Event]) -> None:
        item = self._current(MessageOutput)
        if item is None:
            item = MessageOutput(len(self._items))
            self._begin(item, events)
            place = {**item.place, "content_index": 0}
            events.append(self._event("response.content_part.added", **place, part=item.part()))
        item.add(text)
        item.logprobs += logprobs
        if text:
            place = {**item.place, "content_index": 0}
            events.append(
                self._event("response.output_text.delta", **place, delta=text, logprobs=logprobs)
            )

    def _add_call(self, fragment: dict[str, Any], events: list[Event]) -> None:
        function = fragment["function"]
        item = None if "id" in fragment else self._current(CallOutput)
        if item is None:
            item = CallOutput(len(self._items), fragment["id"], function["name"])
            self._begin(item, events)
        if text := function["arguments"]:
            item.add(text)
            events.append(
                self._event("response.function_call_arguments.delta", **item.place, delta=text)
            )

    def _current(self, kind: type[Item]) -> Item | None:
        item = self._items[-1] if self._items else None
        return item if isinstance(item, kind) else None

    def _begin(self, item: OutputItem, events: list[Event]) -> None:
        self._end_item("completed", events)
        self._items.append(item)
        events.append(
            self._event("response.output_item.added", output_index=item.index, item=item.as_json())
        )

    def _end_item(self, status: Status, events: list[Event]) -> None:
        """End the last item, if there is one."""
        if not self._items:
            return
        item = self._items[-1]
        text = item.text
        place = {**item.place, "content_index": 0}
        item.status = status
        match item:
            case ReasoningOutput():
                events.append(self._event("response.reasoning_text.done", **place, text=text))
            case MessageOutput():
                part = item.part()
                logprobs = part["logprobs"]
                events += [
                    self._event("response.output_text.done", **place, text=text, logprobs=logprobs),
                    self._event("response.content_part.done", **place, part=part),
                ]
            case CallOutput():
                if status == "incomplete" and _is_whole(text):
                    item.status = "completed"
                events.append(
                    self._event(
                        "response.function_call_arguments.done",
                        **item.place,
                        name=item.name,
                        arguments=text,
                    )
                )
            case _:
                raise AssertionError(f"unknown item {type(item).__name__}")
        events.append(
            self._event("response.output_item.done", output_index=item.index, item=item.as_json())
        )

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event


def error_facts(error: ErrorAnswer) -> dict[str, Any]:
    """The `error` of an event."""
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def _is_whole(arguments: str) -> bool:
    """Whether a call's arguments are complete: the parser closes their object with the call."""
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
