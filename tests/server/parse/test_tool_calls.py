"""Tool calls, bullet by bullet. `read` checks every split of every text on the way."""

import pytest

from server.parse import CallArguments, CallEnd, CallStart, Content, OutputParser, Reasoning
from tests.server.parse.answers import (
    INTEGER,
    STRING,
    TOOLS,
    Answer,
    call,
    events_of,
    read,
    tool,
)

LOOK = call("look")
LOOKED = ("look", "{}")
VALUE = (
    "<tool_call>\n<function=write>\n<parameter=text>\n{}\n</parameter>\n</function>\n</tool_call>"
)


def value_of(text: str, **options: object) -> object:
    """The value of `text` in the one call of the answer."""
    answer = read(text, **options)
    ((name, arguments),) = answer.arguments
    assert name == "write"
    assert answer.content is None
    return arguments["text"]


class TestFormat:
    def test_a_call_as_the_template_writes_it(self):
        answer = read(call("write", ("path", "a.txt"), ("mode", "420"), ("text", "Hello\nthere")))
        arguments = '{"path": "a.txt", "mode": 420, "text": "Hello\\nthere"}'
        assert answer == Answer(None, None, [("write", arguments)], 1)

    def test_no_parameters_are_an_empty_object(self):
        assert read(LOOK) == Answer(None, None, [LOOKED], 1)

    @pytest.mark.parametrize("space", ["", " ", "\n", " \n\t\n"])
    def test_whitespace_in_the_opener_is_optional(self, space):
        text = f"<tool_call>{space}<function=look></function></tool_call>"
        assert read(text) == Answer(None, None, [LOOKED], 1)

    @pytest.mark.parametrize(
        "text",
        [
            "<tool_call>",
            "<tool_call>\n",
            "<tool_call> look </tool_call>",
            '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>',
            "<tool_call><function=></function></tool_call>",
            "<tool_call><function=two words></function></tool_call>",
            "<tool_call><function=look</function></tool_call>",
            "<tool_call>\n<function=" + "n" * 300 + ">",
            "</tool_call>",
            "</function>",
            "</parameter>",
            "<parameter=path>\nx\n</parameter>",
            "<tool_call>\n<tool_call>\n x",
        ],
    )
    def test_a_wrapper_without_a_function_is_text(self, text):
        assert read(f"See {text}") == Answer(None, f"See {text}")

    def test_the_second_of_two_wrappers_opens_the_call(self):
        assert read(f"<tool_call>\n{LOOK}") == Answer(None, "<tool_call>", [LOOKED], 1)

    def test_a_declared_function_needs_no_wrapper_in_content(self):
        text = "Well.\n<function=look>\n</function>\nSo."
        assert read(text) == Answer(None, "Well.\nSo.", [LOOKED], 1)

    def test_the_closer_of_a_missing_wrapper_is_dropped(self):
        text = "<function=look>\n</function>\n</tool_call>"
        assert read(text) == Answer(None, None, [LOOKED], 1)

    def test_an_undeclared_function_needs_its_wrapper(self):
        text = "<function=other>\n</function>"
        assert read(text) == Answer(None, text)
        assert read(f"<tool_call>{text}") == Answer(None, None, [("other", "{}")], 1)

    def test_several_functions_in_one_block_are_several_calls(self):
        text = (
            "<tool_call>\n<function=look>\n</function>\n<function=other>\n</function>\n</tool_call>"
        )
        assert read(text) == Answer(None, None, [LOOKED, ("other", "{}")], 2)

    def test_calls_in_blocks_of_their_own(self):
        assert read(f"{LOOK}\n{LOOK}{LOOK}") == Answer(None, None, [LOOKED] * 3, 3)

    def test_values_of_an_unknown_function_are_strings(self):
        text = call("other", ("n", "5"), ("flag", "true"), ("none", "null"))
        arguments = '{"n": "5", "flag": "true", "none": "null"}'
        assert read(text) == Answer(None, None, [("other", arguments)], 1)

    @pytest.mark.parametrize("tools", [None, []])
    def test_without_tools_all_is_verbatim(self, tools):
        text = f"\n {LOOK}\n<function=look></function></tool_call> \n"
        assert read(text, tools=tools) == Answer(None, text)


class TestWhitespace:
    def test_before_a_call_it_is_dropped(self):
        assert read(f"I look. \n\n\t{LOOK}") == Answer(None, "I look.", [LOOKED], 1)
        assert read(f"\n\n {LOOK}") == Answer(None, None, [LOOKED], 1)

    def test_between_reasoning_and_a_call_it_is_dropped(self):
        text = f"Hm.\n</think>\n\n {LOOK}"
        assert read(text, thinking=True) == Answer("Hm.", None, [LOOKED], 1)

    @pytest.mark.parametrize("cut", [False, True])
    def test_after_a_call_it_is_dropped_before_a_call_or_the_end(self, cut):
        text = f"I look.{LOOK}\n\n {LOOK} \n"
        assert read(text, cut=cut) == Answer(None, "I look.", [LOOKED] * 2, 2)

    def test_after_a_call_it_is_dropped_when_no_content_came(self):
        assert read(f"{LOOK}\n\n Done. \n") == Answer(None, "Done. \n", [LOOKED], 1)

    def test_after_a_call_it_is_kept_between_content(self):
        text = f"I look.\n{LOOK}\n\n Done.\n{LOOK} \nAgain. "
        assert read(text) == Answer(None, "I look.\n\n Done. \nAgain. ", [LOOKED] * 2, 2)

    def test_after_a_call_whose_value_was_open_it_is_kept_as_well(self):
        text = "I look.<function=write><parameter=text>x</function>\n\n<function=other>"
        content = "I look.\n\n<function=other>"
        assert read(text) == Answer(None, content, [("write", '{"text": "x"}')], 1)


class TestWhereValuesEnd:
    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("x", "x"),
            ("\nx\n", "x"),
            ("\n\nx\n\n", "\nx\n"),
            ("\n  x  \n", "  x  "),
            ("", ""),
            ("\n", ""),
            ("\n\n", ""),
            ("\n\n\n", "\n"),
            ("\r\nx\r\n", "\r\nx\r"),
            ("\n&lt;x&gt; \\n %20\n", "&lt;x&gt; \\n %20"),
        ],
    )
    def test_a_value_loses_one_newline_at_each_end(self, written, value):
        text = f"<tool_call><function=write><parameter=text>{written}</parameter></function>"
        assert value_of(text) == value

    @pytest.mark.parametrize(
        "follower",
        ["<parameter=path>", "</function>", "</tool_call>", "", "<parameter=>", "<parameter="],
    )
    @pytest.mark.parametrize("space", ["", "\n", " \n "])
    def test_at_its_closer_when_the_format_goes_on(self, follower, space):
        assert value_of(f"<function=write><parameter=text>x</parameter>{space}{follower}") == "x"

    @pytest.mark.parametrize(
        "inside",
        [
            "</parameter>",
            "a </parameter> b",
            "</parameter></parameter>",
            "</parameter>\n</parameter>\n",
            "</parameter>\n<tool_call>",
            "</parameter><function=look>",
            "</parameter> </think>",
            "<a></parameter>\n</func",
        ],
    )
    def test_not_at_a_closer_before_anything_else(self, inside):
        assert value_of(VALUE.format(inside + ".")) == inside + "."

    def test_at_a_parameter_that_begins_a_line(self):
        text = (
            "<function=write>\n<parameter=text>\nx\n<parameter=path>\ny\n</parameter>\n</function>"
        )
        assert read(text).arguments == [("write", {"text": "x", "path": "y"})]
        text = "<function=write>\n<parameter=text>\n<parameter=path>\ny\n</function>"
        assert read(text).arguments == [("write", {"text": "", "path": "y"})]

    @pytest.mark.parametrize(
        "inside",
        [
            "<parameter=path>",
            " <parameter=path>",
            "x<parameter=path>",
            "\n<parameter=>",
            "\n<parameter=p q>",
        ],
    )
    def test_not_at_a_parameter_elsewhere_or_without_a_name(self, inside):
        text = f"<function=write><parameter=text>{inside}</parameter></function>"
        assert value_of(text) == inside.removeprefix("\n")

    @pytest.mark.parametrize("follower", ["</tool_call>", LOOK, "<function=look></function>", ""])
    @pytest.mark.parametrize("space", ["", "\n", " \n "])
    def test_at_the_end_of_its_function(self, follower, space):
        answer = read(
            f"<tool_call><function=write><parameter=text>\nx\n</function>{space}{follower}"
        )
        assert answer.arguments[0] == ("write", {"text": "x"})
        assert len(answer.calls) == 1 + ("look" in follower)
        assert answer.content is None

    @pytest.mark.parametrize(
        "inside",
        [
            "</function>",
            "</function> x",
            "</function></function>",
            "</function>\n</parameter>",
            "</function></think>",
        ],
    )
    def test_not_at_the_end_of_another_function(self, inside):
        assert value_of(VALUE.format(inside + ".")) == inside + "."

    @pytest.mark.parametrize(
        "inside",
        [
            LOOK.replace("</function>\n", ""),
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "<function=look>",
            "<",
            "</",
        ],
    )
    def test_other_markup_is_data(self, inside):
        assert value_of(VALUE.format(inside)) == inside
        assert value_of(VALUE.format(f"a {inside}\nb"), thinking=True) == f"a {inside}\nb"


class TestBetweenValues:
    def test_a_new_block_ends_the_function(self):
        text = f"<tool_call>\n<function=write>\n{LOOK}"
        assert read(text) == Answer(None, None, [("write", "{}"), LOOKED], 2)

    def test_the_end_of_the_block_ends_the_function(self):
        text = "<tool_call>\n<function=look>\n</tool_call>\nDone."
        assert read(text) == Answer(None, "Done.", [LOOKED], 1)

    def test_a_new_function_ends_the_function(self):
        text = "<tool_call>\n<function=look>\n<function=other>\n</function></tool_call>"
        assert read(text) == Answer(None, None, [LOOKED, ("other", "{}")], 2)

    @pytest.mark.parametrize(
        "skipped",
        [
            "<parameter=>\nx\n</parameter>\n",
            "<parameter=path\nx\n</parameter>\n",
            "<parameter=two words>\nx\n</parameter>\n",
            "<parameter>\nx\n</parameter>\n",
            "<parameter=" + "k" * 300 + ">\nx\n</parameter>\n",
            "<path>x</path>\n",
            '{"path": "x"}\n',
            "</think>\n",
        ],
    )
    def test_what_is_no_parameter_is_skipped(self, skipped):
        text = "<parameter=text>\ny\n</parameter>\n</function>\n</tool_call>"
        assert value_of(f"<tool_call>\n<function=write>\n{skipped}{text}") == "y"

    @pytest.mark.parametrize("tag", ["<parameter=>", "<parameter=path", "<parameter=two words>"])
    def test_a_parameter_without_a_name_is_skipped_after_another(self, tag):
        assert value_of(VALUE.replace("</function>", f"{tag}\nx\n</parameter></function>")) == "{}"

    def test_a_declared_name_may_have_spaces(self):
        tools = [tool("f", **{"two words": INTEGER})]
        text = call("f", ("two words", "5"))
        assert read(text, tools=tools) == Answer(None, None, [("f", '{"two words": 5}')], 1)
        text = "<function=f><parameter=a>\nx\n<parameter=two words>\n5\n</function>"
        assert read(text, tools=tools).arguments == [("f", {"a": "x", "two words": 5})]


class TestRepeatedKeys:
    def test_the_last_one_wins(self):
        text = call(
            "write", ("text", "a"), ("mode", "1"), ("text", "b"), ("mode", "2"), ("text", "c")
        )
        assert read(text).arguments == [("write", {"text": "c", "mode": 2})]

    def test_the_same_again_is_not_written_again(self):
        text = call(
            "write", ("text", "a"), ("mode", "1"), ("text", "b"), ("text", "a"), ("mode", "1")
        )
        assert read(text).calls == [("write", '{"text": "a", "mode": 1}')]

    def test_each_key_is_written_twice_at_most(self):
        text = call("write", *(("text", str(i)) for i in range(9)))
        assert read(text).calls == [("write", '{"text": "0", "text": "8"}')]

    def test_a_repetition_that_is_cut_is_missing(self):
        text = "<function=write><parameter=text>\na\n</parameter><parameter=text>\nb"
        assert read(text, cut=True).calls == [("write", '{"text": "a"')]


class TestEndInsideACall:
    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            ("<function=write>", "{}"),
            ("<function=write>\n<param", "{}"),
            ("<function=write>\n<parameter=text", "{}"),
            ("<function=write>\n<parameter=text>", '{"text": ""}'),
            ("<function=write>\n<parameter=text>\nx\n", '{"text": "x"}'),
            ("<function=write>\n<parameter=text>\nx\n</par", '{"text": "x\\n</par"}'),
            ("<function=write>\n<parameter=text>\nx\n</parameter>\n", '{"text": "x"}'),
            ("<function=write>\n<parameter=text>\nx\n</tool_call>", '{"text": "x\\n</tool_call>"}'),
            ("<function=write>\n<parameter=text>\nx\n</function>\n", '{"text": "x"}'),
            ("<function=write>\n<parameter=mode>\n4", '{"mode": 4}'),
        ],
    )
    def test_at_the_models_end_the_call_is_closed(self, text, arguments):
        assert read(text) == Answer(None, None, [("write", arguments)], 1)

    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            ("<function=write>", "{"),
            ("<function=write>\n<parameter=text", "{"),
            ("<function=write>\n<parameter=text>", '{"text": "'),
            ("<function=write>\n<parameter=text>\nx\n", '{"text": "x'),
            ("<function=write>\n<parameter=text>\nx\n</par", '{"text": "x'),
            ("<function=write>\n<parameter=text>\nx\n</parameter>", '{"text": "x'),
            ("<function=write>\n<parameter=text>\nx\n</parameter>\n</fun", '{"text": "x'),
            ("<function=write>\n<parameter=text>\nx\n</function>\n", '{"text": "x'),
            ("<function=write>\n<parameter=text>\nx\n</parameter>\n<parameter=mo", '{"text": "x"'),
            ("<function=write>\n<parameter=mode>\n4", "{"),
            ("<function=write>\n<parameter=mode>\n4\n</para", "{"),
            ("<function=write>\n<parameter=mode>\n4\n</parameter>\n", "{"),
            ("<function=write>\n<parameter=mode>\n4\n</parameter>\n<parameter=", '{"mode": 4'),
            ("<function=write>\n<parameter=mode>\n4\n</parameter>\n</", "{"),
            ("<function=write>\n<parameter=text>\n\n</function>\n<parameter=mo", '{"text": "'),
            (
                "<function=write>\n<parameter=mode>\n4\n<parameter=text>\ny",
                '{"mode": 4, "text": "y',
            ),
            ("<function=write>\n<parameter=mode>\n4\n</function>x", "{"),
        ],
    )
    def test_at_the_token_limit_it_stays_as_streamed(self, text, arguments):
        assert read(text, cut=True) == Answer(None, None, [("write", arguments)], 0)

    @pytest.mark.parametrize(
        "tail", ["", "\n", "</tool_", "\n<tool_call>", "\n<tool_call>\n<function=wri"]
    )
    def test_a_finished_function_is_complete_at_the_token_limit(self, tail):
        text = f"<tool_call>\n<function=look>\n</function>{tail}"
        assert read(text, cut=True) == Answer(None, None, [LOOKED], 1)

    @pytest.mark.parametrize("tail", ["</tool_call>", "\n<tool_call>", "\n<function=wri"])
    def test_a_value_that_ends_with_its_function_is_complete_at_the_token_limit(self, tail):
        text = f"<function=write><parameter=text>\nx\n</function>{tail}"
        assert read(text, cut=True) == Answer(None, None, [("write", '{"text": "x"}')], 1)

    @pytest.mark.parametrize(
        "opener",
        [
            "<tool_call>",
            "<tool_call>\n",
            "<tool_call>\n<fun",
            "<tool_call><function=x",
            "<function=",
            "<function=wri",
        ],
    )
    def test_an_opener_without_its_name_is_dropped_at_the_token_limit(self, opener):
        assert read(opener, cut=True) == Answer()
        assert read(f"I look.\n{opener}", cut=True) == Answer(None, "I look.")
        assert read(f"I look.\n{opener}") == Answer(None, f"I look.\n{opener}")

    @pytest.mark.parametrize(
        "text", ["1 <", "a <tool", "a <tool_call> b", "a <tool_call></", "a <function=x"]
    )
    def test_what_is_no_opener_stays_at_the_token_limit(self, text):
        assert read(text, cut=True) == Answer(None, text)


class TestStreaming:
    def test_strings_stream_and_other_types_come_when_complete(self):
        parser = OutputParser(thinking=False, tools=TOOLS)
        assert parser.feed("<tool_call>\n<function=write>") == [
            CallStart(0, "write"),
            CallArguments(0, "{"),
        ]
        assert parser.feed("\n<parameter=mode>\n4") == []
        assert parser.feed("20\n</parameter>\n") == []
        assert parser.feed("<parameter=text>\n") == [CallArguments(0, '"mode": 420, "text": "')]
        assert parser.feed('say "') == [CallArguments(0, 'say \\"')]
        assert parser.feed("\n") == []
        assert parser.feed("é\t\x01\\") == [CallArguments(0, "\\né\\t\\u0001\\\\")]
        assert parser.feed("</para") == []
        assert parser.feed("meter>") == []
        assert parser.feed("\n</function>") == [CallArguments(0, '"}'), CallEnd(0)]
        assert parser.feed("\n</tool_call>") == []
        assert parser.finish(cut=False) == []

    def test_a_nullable_string_streams_once_it_cannot_be_null(self):
        parser = OutputParser(thinking=False, tools=[tool("f", a={"type": ["string", "null"]})])
        parser.feed("<function=f>")
        assert parser.feed("<parameter=a>\nnu") == []
        assert parser.feed("t") == [CallArguments(0, '"a": "nut')]
        assert parser.feed("s") == [CallArguments(0, "s")]
        assert parser.feed("\n</parameter></function>") == [CallArguments(0, '"}'), CallEnd(0)]

    def test_events_of_one_piece_are_joined(self):
        text = f"Hm < x.\n</think>\n\nI < you.\n{call('write', ('text', 'a < b'))}"
        assert events_of([text], thinking=True) == [
            Reasoning("Hm < x."),
            Content("I < you."),
            CallStart(0, "write"),
            CallArguments(0, '{"text": "a < b"}'),
            CallEnd(0),
        ]

    def test_whitespace_before_a_call_never_shows(self):
        parser = OutputParser(thinking=True, tools=TOOLS)
        parser.feed("Hm.\n</think>")
        assert parser.feed("\n\n") == []
        assert parser.feed("<tool_call>") == []


class TestMaxCalls:
    def test_calls_past_the_limit_are_read_but_not_reported(self):
        write = call("write", ("text", "x"))
        assert read(f"{LOOK}\n{write}\n{LOOK}", max_calls=1) == Answer(None, None, [LOOKED], 1)
        assert read(f"{LOOK}\n{write}", max_calls=0) == Answer()
        assert read(f"{LOOK}\n{write}", max_calls=2).num_finished == 2

    def test_text_after_them_is_content(self):
        text = f"I look.\n{LOOK}\n{LOOK}\nDone."
        assert read(text, max_calls=1) == Answer(None, "I look.\nDone.", [LOOKED], 1)

    def test_a_call_that_is_not_reported_does_not_count_as_finished(self):
        text = "<function=write><parameter=text>x</parameter>"
        assert read(f"{LOOK}{text}", max_calls=1, cut=True) == Answer(None, None, [LOOKED], 1)


def test_parameters_of_one_tool_say_nothing_of_another():
    tools = [tool("a", x=INTEGER), tool("b", x=STRING)]
    text = call("a", ("x", "5")) + call("b", ("x", "5"))
    assert read(text, tools=tools).arguments == [("a", {"x": 5}), ("b", {"x": "5"})]


def test_tools_without_parameters():
    tools = [{"type": "function", "function": {"name": "f", "parameters": None}}]
    assert read(call("f", ("x", "5")), tools=tools).arguments == [("f", {"x": "5"})]
    del tools[0]["function"]["parameters"]
    assert read(call("f"), tools=tools).arguments == [("f", {})]
