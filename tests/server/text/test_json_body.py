import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import BadRequest
from server.json_body import MAX_CONTAINERS, decode_json
from server.limits import DEFAULT_LIMITS

MAX_DEPTH = DEFAULT_LIMITS.max_json_depth

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@settings(max_examples=40)
@given(
    value=st.dictionaries(st.text(st.characters(codec="utf-8")), JSON_VALUES), ascii=st.booleans()
)
def test_any_json_object_decodes_as_the_standard_library_does(value: object, ascii: bool):
    body = json.dumps(value, ensure_ascii=ascii).encode()
    assert decode_json(body) == json.loads(body)


@given(st.binary(max_size=60))
def test_any_bytes_give_an_object_or_a_refusal(body: bytes):
    refusal = None
    try:
        assert isinstance(decode_json(body), dict)
    except BadRequest as error:
        refusal = error
    assert refusal is None or (refusal.status == 400 and len(refusal.message) < 200)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": Infinity}', "not valid JSON"),
        (b'{"a": -Infinity}', "not valid JSON"),
        (b'{"a": "\x00"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\\ud800\\u0041"}', "not valid JSON"),
        (b'{"a": "\\udc00\\ud800"}', "not valid JSON"),
        (b'{"\\ud800": 1}', "not valid JSON"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": -1e999}', "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a": "\xff"}', "not valid UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
    ],
)
def test_refusals(body: bytes, word: str):
    with pytest.raises(BadRequest) as caught:
        decode_json(body)
    assert word in caught.value.message
    assert caught.value.status == 400
    assert "999" not in caught.value.message


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"[]" + b"}" * (depth - 1)


def test_nesting_is_allowed_up_to_the_limit():
    assert decode_json(nested(MAX_DEPTH))
    with pytest.raises(BadRequest, match="deeper than 128"):
        decode_json(nested(MAX_DEPTH + 1))
    with pytest.raises(BadRequest, match="deeper than 128"):
        decode_json(b'{"a":' + b"[" * 1_000_000)


def test_many_shallow_containers_are_not_nesting():
    assert len(decode_json(b'{"a":[' + b"{}," * 5000 + b"{}]}")["a"]) == 5001


def test_brackets_inside_strings_do_not_count():
    text = r"[[{{" * 200 + r"\"[["
    body = json.dumps({"a": text, '["': [[text]]}).encode()
    assert decode_json(body) == {"a": text, '["': [[text]]}


def test_number_of_containers_is_bounded():
    with pytest.raises(BadRequest, match="more than 1000000 lists"):
        decode_json(b'{"a":[' + b"[]," * MAX_CONTAINERS + b"[]]}")


@pytest.mark.parametrize("body", [b'{"a":"' + b"[" * 400_000, b'"' * 400_000 + b"[" * 200])
def test_unfinished_strings_are_scanned_once(body: bytes):
    with pytest.raises(BadRequest):  # a quadratic scan would run into the test's timeout
        decode_json(body)
