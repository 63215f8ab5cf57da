import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from engine import GrammarSpec
from server.constraints.calls import MAX_CALLS
from server.constraints.reader import ConstraintReader
from server.constraints.value_text import CLOSERS, NEXT_PARAMETER
from server.errors import BadRequest
from server.parse import CallArguments, CallEnd, CallStart, Content, OutputParser
from tests.engine.grammar.sampling import Babbler


def tool(name: str, parameters: Any = None, strict: bool | None = None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "parameters": parameters, "strict": strict}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


def taking(properties: dict[str, Any], *required: str, **others: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **others}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


STRING = {"type": "string"}
NULLABLE = {"anyOf": [{"type": "string"}, {"type": "null"}]}
VALUES: dict[str, Any] = {
    "text": STRING,
    "untyped": {"description": "anything"},
    "free": True,
    "nullable": NULLABLE,
    "short": {"type": "string", "minLength": 2, "maxLength": 5},
    "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
    "inside": {"type": "string", "pattern": "x-y", "maxLength": 12},
    "either pattern": {"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "^b"}]},
    "nullable code": {"type": ["string", "null"], "pattern": "^[A-Z]{2}$"},
    "unit": {"enum": ["celsius", "fahrenheit", "null", "12", " x\n\n", "<b>"]},
    "nullable unit": {"enum": ["celsius", None]},
    "mixed enum": {"enum": ["a", 1, True, None, [1, 2]]},
    "constant": {"const": "only\nthis"},
    "integer": {"type": "integer"},
    "days": {"type": "integer", "minimum": 1, "maximum": 14},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "nothing": {"type": "null"},
    "text or integer": {"type": ["string", "integer"], "minimum": 10},
    "text or flag": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 6}]},
    "anything but": {"type": ["string", "array", "object", "null", "number"]},
    "list": {"type": "array", "items": {"type": ["string", "number"]}, "maxItems": 3},
    "point": {"$ref": "#/$defs/point"},
    "nullable point": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
    "name": {"allOf": [{"$ref": "#/$defs/name"}]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
    **{f: {"type": "string", "format": f} for f in ("date", "date-time", "time", "uuid", "ipv4")},
    **{f: {"type": "string", "format": f} for f in ("ipv6", "email", "hostname", "duration")},
    "uri": {"type": "string", "format": "uri"},
    "untyped list": {"items": {"type": "integer"}, "maxItems": 3},
    "untyped object": {"properties": {"a": {"type": "null"}}, "required": ["a"]},
    "untyped number": {"minimum": 3},
    "untyped text": {"maxLength": 9},
}  # fmt: skip
DEFS = {
    "point": taking({"x": {"type": "number"}, "y": {"type": "number"}}, "x"),
    "name": {"type": "string", "maxLength": 8},
}
EVERYTHING = taking(VALUES, "text", "days", **{"$defs": DEFS})


def parsed(
    tools: list[dict[str, Any]], answer: str, *bound: str
) -> tuple[str, list[tuple[str, Any]]]:
    """Content and calls, as the server reads them out of an answer."""
    parser = OutputParser(thinking=False, tools=tools, bound_calls=frozenset(bound))
    content, names, texts, num_ends = "", [], [], 0
    for event in [*parser.feed(answer), *parser.finish(cut=False)]:
        match event:
            case Content(text):
                content += text
            case CallStart(_, name):
                names.append(name)
                texts.append("")
            case CallArguments(index, text):
                texts[index] += text
            case CallEnd():
                num_ends += 1
            case _:
                raise AssertionError(f"{event} in {answer!r}")
    assert num_ends == len(names)
    return content, list(zip(names, map(json.loads, texts), strict=True))


def check(schema: Any, arguments: Any) -> None:
    formats = FormatChecker(("date", "uuid", "ipv4", "ipv6", "email"))
    Draft202012Validator(schema, format_checker=formats).validate(arguments)


def read(reader: ConstraintReader, request: dict[str, Any], **ids: int) -> GrammarSpec:
    spec = reader.read(request, **ids)
    assert spec is not None
    return spec


@pytest.mark.parametrize("key", VALUES)
def test_each_kind_of_value_fits_its_schema(reader: ConstraintReader, babbler: Babbler, key: str):
    schema = taking({key: VALUES[key]}, key, **{"$defs": DEFS})
    tools = [tool("f", schema)]
    spec = read(reader, {"tools": tools, "tool_choice": named("f")})
    for seed in range(20):
        answer = babbler.answer(spec, random.Random(seed), free_tokens=40)
        content, calls = parsed(tools, answer, "f")
        assert content == ""
        assert [name for name, _ in calls] == ["f"]
        check(schema, calls[0][1])


def test_required_parameters_come_and_others_may(reader: ConstraintReader, babbler: Babbler):
    tools = [tool("f", EVERYTHING)]
    spec = read(reader, {"tools": tools, "tool_choice": "required"})
    seen: set[str] = set()
    order = list(VALUES)
    for seed in range(25):
        answer = babbler.answer(spec, random.Random(seed), free_tokens=300)
        content, calls = parsed(tools, answer, "f")
        assert content == ""
        assert 1 <= len(calls) <= MAX_CALLS
        for _, arguments in calls:
            check(EVERYTHING, arguments)
            assert {"text", "days"} <= arguments.keys()
            assert list(arguments) == sorted(arguments, key=order.index)
            seen |= arguments.keys()
    assert len(seen) > 15


def test_values_of_real_answers_are_allowed(reader: ConstraintReader, babbler: Babbler):
    tools = [tool("f", EVERYTHING), tool("other", taking({})), tool("bare")]
    spec = read(reader, {"tools": tools, "tool_choice": "required"})
    values = {
        "text": 'def f():\n    return "<b>1 < 2</b>"\n\n<tool_call> </function> <parameter>\n',
        "untyped": "",
        "nullable": "null",
        "unit": " x\n\n",
        "days": "7",
        "number": "-1.5e-7",
        "text or integer": "Ten",
        "list": '["a", 1]',
        "point": '{"x": 1, "y": 2}',
        "email": "ada.lovelace@mail.example.org",
        "uri": "https://example.org/a/b?c=d&e=f#g",
    }
    values = {key: values[key] for key in VALUES if key in values}
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    call = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    bare = "<tool_call>\n<function=other>\n</function>\n</tool_call>"
    for answer in (call, f"{bare}\n{call}", f"{bare}\n{bare.replace('other', 'bare')}"):
        assert babbler.accepts(spec, answer)
    _, [(_, arguments)] = parsed(tools, call)
    assert arguments["text"] == values["text"]
    assert arguments["nullable"] is None
    assert arguments["unit"] == values["unit"]


MARKUP = "</parameter>\n</function>\n</tool_call>\n<parameter=days>\n7"


@pytest.mark.parametrize("value", [MARKUP, f'"{MARKUP}', MARKUP + "\\", "</parameter></function>"])
def test_markup_inside_of_json_strings_ends_no_value(
    reader: ConstraintReader, babbler: Babbler, value: str
):
    point = taking({"x": STRING}, "x")
    schema = taking(
        {"a": point, "b": {"anyOf": [point, STRING]}, "days": {"type": "integer"}}, "a", "b", "days"
    )
    tools = [tool("f", schema)]
    spec = read(reader, {"tools": tools, "tool_choice": "required"})
    body = "".join(f"<parameter={key}>\n{json.dumps({'x': value})}\n</parameter>\n" for key in "ab")
    answer = (
        f"<tool_call>\n<function=f>\n{body}<parameter=days>\n7\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    assert babbler.accepts(spec, answer)
    expected = {"a": {"x": value}, "b": {"x": value}, "days": 7}
    assert parsed(tools, answer, "f") == ("", [("f", expected)])


def test_text_that_begins_like_json_is_text(reader: ConstraintReader, babbler: Babbler):
    tools = [tool("f", taking({"a": STRING, "b": NULLABLE, "c": {"enum": ['{"', 3]}}, "a"))]
    spec = read(reader, {"tools": tools, "tool_choice": "required"})
    body = "".join(f'<parameter={key}>\n{{"\n</parameter>\n' for key in "abc")
    answer = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    assert babbler.accepts(spec, answer)
    assert parsed(tools, answer, "f") == ("", [("f", dict.fromkeys("abc", '{"'))])


@pytest.mark.parametrize("most", [120, 200, 2000, 10_000])
@pytest.mark.parametrize("others", [{}, {"minLength": 3}, {"pattern": "a"}])
def test_bounded_text_is_written_to_its_end(
    reader: ConstraintReader, babbler: Babbler, most: int, others: dict[str, Any]
):
    tools = [tool("f", taking({"a": {"type": "string", "maxLength": most, **others}}, "a"))]
    spec = read(reader, {"tools": tools, "tool_choice": "required"})
    lines = "a < b\n</para\n<parameter\n</function\n"
    for value in ("abc", (lines * most)[: min(most, 1000)]):
        begin = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}"
        answer = f"{begin}\n</parameter>\n</function>\n</tool_call>"
        assert babbler.accepts(spec, answer)
        assert parsed(tools, answer, "f") == ("", [("f", {"a": value})])
    if most <= 2000:  # the text is one character too long
        too_long = (value * most)[: most + 1]
        assert not babbler.accepts(spec, answer.replace(value, too_long))


def test_raw_values_hold_all_text_but_what_ends_them():
    """Against the definition: a complement, which the grammar engine would stumble over."""
    space = r"[\s\x1c-\x1f]*"
    ends = re.compile(
        r"(?s:.*)(?:</parameter>|\n<parameter=[^<>\n]+>"
        rf"|</function>{space}<(?:/tool_call>|tool_call>|function=))(?s:.*)"
        r"|<parameter=[^<>\n]+>(?s:.*)"
    )
    closers, next_parameter = re.compile(CLOSERS), re.compile(NEXT_PARAMETER)
    tags = "<parameter= </parameter> </function> </functio parameter= function= /tool_call>"
    more = "tool_call> <tool_call> <function= </par <parameter=n <par"
    pieces = [*"</\n a>=x", "\n<", "\n<par", *tags.split(), *more.split()]
    rng = random.Random(0)
    num_ending = 0
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(8)))
        is_ended = ends.fullmatch(text) is not None
        fits = all(regex.fullmatch(text) for regex in (closers, next_parameter))
        assert fits is not is_ended, text
        num_ending += is_ended
    assert 1000 < num_ending < 19_000


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "text",
        " <tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n</function>\n</tool_call>",
        "<tool_call>\n<function=g>\n</function>\n</tool_call>",
        "<tool_call>\n\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>\n",
        "<tool_call>\n<function=f>\n<parameter=b>\nx\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\nx</parameter>\n</function>\n</tool_call>",
    ],
)
def test_forced_markup_is_exact(reader: ConstraintReader, babbler: Babbler, wrong: str):
    tools = [tool("f", taking({"a": STRING}, "a"))]
    assert not babbler.accepts(read(reader, {"tools": tools, "tool_choice": "required"}), wrong)


def test_one_call_where_one_is_asked_for(reader: ConstraintReader, babbler: Babbler):
    tools = [tool("f"), tool("g")]
    call = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    other = call.replace("=f", "=g")
    required = read(reader, {"tools": tools, "tool_choice": "required"})
    single = read(reader, {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False})
    only_f = read(reader, {"tools": tools, "tool_choice": named("f")})
    for spec, answer, fits in (
        (required, f"{call}\n{other}", True),
        (required, "\n".join([call] * MAX_CALLS), True),
        (required, "\n".join([call] * (MAX_CALLS + 1)), False),
        (single, other, True),
        (single, f"{call}\n{other}", False),
        (only_f, call, True),
        (only_f, other, False),
        (only_f, f"{call}\n{call}", False),
    ):
        assert babbler.accepts(spec, answer) is fits


def test_bounded_calls_end_whatever_the_model_writes(reader: ConstraintReader, babbler: Babbler):
    parameters = taking(
        {
            "a": {"type": "string", "maxLength": 10},
            "b": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
            "c": {"type": ["string", "integer"], "maxLength": 3},
        },
        "a",
    )
    tools = [tool("f", parameters)]
    for choice in ("required", named("f")):
        spec = read(reader, {"tools": tools, "tool_choice": choice})
        for pick in (min, max, random.Random(0).choice):
            content, calls = parsed(tools, babbler.stubborn(spec, pick))
            assert content == ""
            assert len(calls) == (MAX_CALLS if choice == "required" else 1)
            for _, arguments in calls:
                check(parameters, arguments)


def test_calls_begin_behind_the_thinking(reader: ConstraintReader, babbler: Babbler):
    tools = [tool("f", taking({"a": STRING}, "a"))]
    after, call_id = babbler.id_of("</think>"), babbler.id_of("<tool_call>")
    spec = read(
        reader,
        {"tools": tools, "tool_choice": "required"},
        after_token_id=after,
        call_token_id=call_id,
    )
    assert spec.banned_before == (call_id,)
    for seed in range(10):
        answer = babbler.answer(spec, random.Random(seed), free_tokens=60)
        thoughts, mark, rest = answer.partition("</think>")
        assert mark
        assert "<tool_call>" not in thoughts
        content, calls = parsed(tools, rest)
        assert content.strip() == ""
        assert calls


def test_strict_tools_are_bound_once_a_call_begins(reader: ConstraintReader, babbler: Babbler):
    strict = tool("f", taking({"n": {"type": "integer"}}, "n"), strict=True)
    loose = tool("g", taking({"n": {"type": "integer"}}, "n"))
    tools = [strict, loose]
    spec = read(reader, {"tools": tools})
    good = "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>"
    other = "<tool_call>\n<function=g>\nwhatever <parameter=n> this\n is </function></tool_call>"
    for answer, fits in (
        ("", True),
        ("Plain text, <b>tags</b>, <function=g> and </tool_call>.", True),
        (f"Think.\n</think>\n\nLet me see.\n\n{good}", True),
        (f"{good}\n{other}\nDone.", True),
        (good.replace("3", "x"), False),
        (good.replace("\n3", "\n\n3"), False),
        ("<tool_call>\n<function=h>\n</function>\n</tool_call>", False),
        ("<tool_call> is a tag", False),
        ("<function=f>\n<parameter=n>\nx\n</parameter>\n</function>", False),
        (other.replace("this", "<function=f>"), False),
    ):
        assert babbler.accepts(spec, answer) is fits, answer
    single = read(reader, {"tools": tools, "parallel_tool_calls": False})
    assert babbler.accepts(single, f"Text {good} text.")
    assert not babbler.accepts(single, f"{good}\n{good}")


def test_random_text_with_strict_tools_keeps_its_calls_in_shape(
    reader: ConstraintReader, babbler: Babbler
):
    schema = taking({"n": {"type": "integer"}, "s": {"type": "string"}}, "n")
    tools = [tool("f", schema, strict=True)]
    spec = read(reader, {"tools": tools})
    for seed in range(40):
        answer = babbler.answer(
            spec, random.Random(seed), free_tokens=3 * seed, begin="Well, <tool_call>"
        )
        _, calls = parsed(tools, answer)
        assert calls
        for _, arguments in calls:
            check(schema, arguments)


def test_content_or_calls_where_both_may_come(reader: ConstraintReader, babbler: Babbler):
    schema = {"properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    tools = [tool("f", taking({"n": {"type": "integer"}}, "n"), strict=True), tool("g")]
    call = "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>"
    for request in (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"guided_grammar": 'root ::= "{" ["] "ok" ["] ": " ("true" | "false") "}"'},
    ):
        spec = read(reader, {"tools": tools, **request})
        assert babbler.accepts(spec, '{"ok": true}')
        assert babbler.accepts(spec, f"{call}\n{call}")
        assert not babbler.accepts(spec, call.replace("3", "x"))
        assert not babbler.accepts(spec, "text")
        assert not babbler.accepts(spec, '{"ok": true}' + call)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"anyOf": [taking({})]}, "tools.0.function.parameters.anyOf is not supported"),
        ({"type": "array"}, 'tools.0.function.parameters.type must be "object"'),
        ({"$ref": "#/$defs/none"}, "tools.0.function.parameters.$ref points at nothing"),
        (taking({"a": {"not": {"minimum": 3}}}), "parameters.properties.a.not is not"),
        (taking({"a<b": STRING}), "has a parameter whose name cannot be written"),
        (taking({"": STRING}), "has a parameter whose name cannot be written"),
        (taking({}, "a", additionalProperties=False), "requires a parameter that it does not"),
        (taking({"a": False}, "a"), "properties.a allows no value"),
        ({"properties": [], "required": []}, "properties must be an object"),
        (taking({"a": STRING, "b": STRING}, "a", minProperties=2), "minProperties can be"),
        (taking({f"p{i}": {"type": "null"} for i in range(2001)}), "more than 2000 properties"),
        (taking({"a": STRING, "b": STRING}, maxProperties=1), "maxProperties can be"),
        (taking({"a": {"enum": ["x\n</parameter>\ny"]}}, "a"), "properties.a allows no value"),
        (taking({"a": {"enum": ["x"], "minLength": 2}}), "properties.a allows no value"),
        (taking({"a": {"oneOf": [{"type": "string"}, {"maxLength": 3}]}}, "a"), "oneOf"),
        (taking({"a": {"$ref": "#/$defs/a"}}, "a", **{"$defs": {"a": {"$ref": "#/$defs/a"}}}),
         "no value that ever ends"),
        (taking({"a": {"description": "d" * 300_000}}), "tools is larger than"),
        (taking({f"p{i}": {"$ref": "#/$defs/big"} for i in range(200)},
                **{"$defs": {"big": {"enum": [[f"v{i:03}" * 10] for i in range(400)]}}}),
         "makes a grammar that is too large"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_its_path(
    reader: ConstraintReader, parameters: Any, message: str
):
    for request in (
        {"tools": [tool("f", parameters)], "tool_choice": "required"},
        {"tools": [tool("f", parameters, strict=True)]},
    ):
        with pytest.raises(BadRequest) as refusal:
            reader.read(request)
        assert message in refusal.value.message
        assert refusal.value.param == "tools"
    assert reader.read({"tools": [tool("f", parameters)]}) is None
    assert (
        reader.read({"tools": [tool("f", parameters, strict=True)], "tool_choice": "none"}) is None
    )


@given(
    st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=5, unique=True),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=60)
def test_any_signature_is_called_as_declared(
    reader: ConstraintReader, babbler: Babbler, keys: list[str], rng: random.Random
):
    schema = taking(
        {key: VALUES[key] for key in keys},
        *rng.sample(keys, rng.randrange(len(keys) + 1)),
        **{"$defs": DEFS},
    )
    tools = [tool("first"), tool("second", schema)]
    spec = read(reader, {"tools": tools, "tool_choice": named("second")})
    _, calls = parsed(tools, babbler.answer(spec, rng, free_tokens=100))
    [(name, arguments)] = calls
    assert name == "second"
    check(schema, arguments)
