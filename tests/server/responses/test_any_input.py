"""Whatever a client sends is read or refused: nothing else comes out of the reader."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic.json_schema import models_json_schema

from server.errors import BadRequest
from server.responses import ResponsesRequest, ResponseStore
from server.responses.convert import ITEM_TYPES, MEDIA_TYPES, TEXT_TYPES
from server.responses.read import ResponseDraft, ResponseReader
from server.tokenizer import Tokenizer
from server.validate import Validator

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "auto", "{}", "text"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def objects(kinds: tuple[str, ...], fields: dict[str, st.SearchStrategy[Any]]) -> Any:
    """Objects of one of the types (or none), each field right, wrong or missing."""
    mixed = {name: right | VALUES for name, right in fields.items()}
    return st.fixed_dictionaries({"type": st.sampled_from(kinds)}, optional=mixed)


PARTS = objects(
    (*TEXT_TYPES, *MEDIA_TYPES, "refusal", "input_image"),
    {"text": st.text(max_size=5), "refusal": st.just("No."), "image_url": st.just("x")},
)
CONTENT = st.text(max_size=5) | st.lists(PARTS, max_size=2)
ITEMS = objects(
    ITEM_TYPES,
    {
        "role": st.sampled_from(["user", "assistant", "system", "developer"]),
        "content": CONTENT,
        "summary": CONTENT,
        "output": CONTENT,
        "id": st.sampled_from(["a", "b"]),
        "call_id": st.just("c1"),
        "name": st.just("f"),
        "arguments": st.sampled_from(["{}", '{"a": 1}', '{"a', "[]"]),
        "status": st.sampled_from(["completed", "incomplete"]),
    },
)
TOOLS = objects(
    ("function", "web_search"),
    {"name": st.just("f"), "parameters": st.just({}), "strict": st.booleans()},
)
BODIES = st.fixed_dictionaries(
    {"input": st.text(max_size=5) | st.lists(ITEMS, max_size=4) | VALUES},
    optional={
        "instructions": st.text(max_size=5),
        "tools": st.lists(TOOLS, max_size=2) | VALUES,
        "tool_choice": st.just({"type": "function", "name": "f"}) | VALUES,
        "text": st.just({"format": {"type": "json_object"}}) | VALUES,
        "reasoning": st.just({"effort": "low"}) | VALUES,
        "metadata": VALUES,
        "previous_response_id": VALUES,
        "truncation": st.just("auto") | VALUES,
        "store": VALUES,
        "background": VALUES,
        "include": VALUES | st.just(["message.output_text.logprobs"]),
        "top_logprobs": VALUES | st.integers(-1, 21),
        "user": VALUES,
        "max_output_tokens": VALUES,
    },
)


@pytest.fixture(scope="session")
def reader(validator: Validator, tokenizer: Tokenizer) -> ResponseReader:
    return ResponseReader(validator, tokenizer, ResponseStore(), default_model="tiny")


def outcome(reader: ResponseReader, body: dict[str, Any]) -> ResponseDraft | BadRequest:
    try:
        return reader.read(msgspec.json.encode(body), b"")
    except BadRequest as refused:
        return refused


@given(body=BODIES)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_input_is_read_or_refused(reader: ResponseReader, body: dict[str, Any]) -> None:
    came = outcome(reader, body)
    event("read" if isinstance(came, ResponseDraft) else f"refused: {came.param}")
    if isinstance(came, BadRequest):
        assert came.status in (400, 404)
        assert came.param is not None
        assert not came.param.startswith("messages")
        return
    assert came.draft.generations[0].prompt_ids
    assert (came.store is not None) == came.fields["store"]
    msgspec.json.encode(came.fields)


def test_the_request_has_a_schema() -> None:
    _, found = models_json_schema([(ResponsesRequest, "validation")])
    fields = found["$defs"]["ResponsesRequest"]
    assert fields["required"] == ["input"]
    assert {"previous_response_id", "max_output_tokens", "temperature"} < set(fields["properties"])
