import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import BadRequest
from server.json_body import LARGE_BYTES, MAX_COST, decode_json, in_turn
from server.limits import DEFAULT_LIMITS
from server.protocol import DetokenizeRequest, parse_body

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


@pytest.mark.parametrize(
    ("unit", "number"),
    [
        (b"[],", MAX_COST // 32),
        (b"{},", MAX_COST // 32),
        (b'{"a":[1]},', MAX_COST // 96),
        (b'"",', MAX_COST // 16),
        (b"1.5,", MAX_COST // 2),
        (b"1e5,", MAX_COST // 2),
        (b"1,", MAX_COST),
    ],
)
def test_what_there_is_to_decode_is_bounded(unit: bytes, number: int):
    with pytest.raises(BadRequest, match="too many values"):
        decode_json(b'{"a":[' + unit * number + b"1]}")


def test_members_of_an_object_are_bounded():
    names = (b'"%x":1' % i for i in range(MAX_COST // 32))
    with pytest.raises(BadRequest, match="too many values"):
        decode_json(b'{"a":1,' + b",".join(names) + b"}")


def test_ids_of_many_long_prompts_are_few_enough():
    prompts = b",".join([b"[" + b",".join([b"248044"] * 74_000) + b"]"] * 128)
    assert 63 << 20 < len(prompts) < 64 << 20
    assert len(decode_json(b'{"prompt":[' + prompts + b"]}")["prompt"]) == 128


@pytest.mark.parametrize("escapes", [1, 2, 3, 4])
@pytest.mark.parametrize("shift", range(3))
def test_strings_end_where_they_end_wherever_the_scan_cuts(escapes: int, shift: int):
    """More brackets than may be nested, in strings whose escapes lie across every boundary."""
    text = "a" * shift + ("\\" * escapes + '"' + "[" * 3) * 200_000
    assert decode_json(json.dumps({"a": text, "b": [text]}).encode()) == {"a": text, "b": [text]}


@pytest.mark.parametrize("body", [b'{"a":"' + b"[" * 400_000, b'"' * 400_000 + b"[" * 200])
def test_unfinished_strings_are_scanned_once(body: bytes):
    with pytest.raises(BadRequest):  # a quadratic scan would run into the test's timeout
        decode_json(body)


def test_large_bodies_are_parsed_one_at_a_time():
    small = b'{"tokens":[]}'
    large = small + b" " * LARGE_BYTES
    with ThreadPoolExecutor(2) as threads:
        with in_turn(large):
            waits = threads.submit(parse_body, DetokenizeRequest, large, DEFAULT_LIMITS)
            goes_on = threads.submit(parse_body, DetokenizeRequest, small, DEFAULT_LIMITS)
            assert goes_on.result(10).tokens == []
            with pytest.raises(TimeoutError):
                waits.result(0.1)
        assert waits.result(10).tokens == []
