"""Reasoning, bullet by bullet. `read` checks every split of every text on the way."""

import pytest

from server.parse import Content, OutputParser, Reasoning
from tests.server.parse.answers import TOOLS, Answer, call, read

with_and_without_tools = pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
both_ends = pytest.mark.parametrize("cut", [False, True], ids=["stop", "length"])


@with_and_without_tools
@both_ends
class TestThinkingOn:
    def test_text_to_the_first_closing_tag_is_reasoning(self, tools, cut):
        text = "First I think.\n</think>\n\nThen I answer."
        expected = Answer("First I think.", "Then I answer.")
        assert read(text, thinking=True, tools=tools, cut=cut) == expected

    @pytest.mark.parametrize("lead", ["<think>", "<think>\n", "\n<think>\n\n", "\n\n<think>"])
    def test_a_leading_opening_tag_is_dropped(self, lead, tools, cut):
        text = lead + "Hm.\n</think>\n\nYes."
        assert read(text, thinking=True, tools=tools, cut=cut) == Answer("Hm.", "Yes.")

    def test_only_the_first_opening_tag_is_dropped(self, tools, cut):
        text = "<think><think> Hm <think></think><think>Yes."
        expected = Answer("<think> Hm <think>", "<think>Yes.")
        assert read(text, thinking=True, tools=tools, cut=cut) == expected

    @pytest.mark.parametrize("text", ["So far", "So far </thin", "So far <", "So far </think"])
    def test_without_a_closing_tag_all_is_reasoning(self, text, tools, cut):
        assert read(text, thinking=True, tools=tools, cut=cut) == Answer(text, None)

    def test_newlines_at_the_end_go_when_it_never_closed(self, tools, cut):
        assert read("\n\nSo far\n\n", thinking=True, tools=tools, cut=cut) == Answer("So far")

    def test_newlines_that_frame_go_and_no_other_whitespace(self, tools, cut):
        text = "\n\n \tWell,\n\nthen. \n\n</think>\n\n  It is\n\n so. \n"
        expected = Answer(" \tWell,\n\nthen. ", "  It is\n\n so. \n")
        assert read(text, thinking=True, tools=tools, cut=cut) == expected

    @pytest.mark.parametrize("text", ["", "\n", "</think>", "<think>\n\n</think>\n\n", "<think>"])
    def test_nothing_but_frame_is_nothing(self, text, tools, cut):
        assert read(text, thinking=True, tools=tools, cut=cut) == Answer()

    def test_empty_reasoning(self, tools, cut):
        text = "\n\n</think>\n\nYes."
        assert read(text, thinking=True, tools=tools, cut=cut) == Answer(None, "Yes.")

    def test_more_closing_tags_are_dropped(self, tools, cut):
        text = "Hm.</think>\n\n</think>\n\nYes</think>.\n</think>"
        assert read(text, thinking=True, tools=tools, cut=cut) == Answer("Hm.", "Yes.\n")


@with_and_without_tools
@both_ends
class TestThinkingOff:
    @pytest.mark.parametrize(
        "text",
        [
            "\n\n Yes. \n\n",
            "a < b </think> c <think> d",
            "</think>\n\nYes.",
            " <think>x</think>",
            "\n",
        ],
    )
    def test_text_is_content_byte_for_byte(self, text, tools, cut):
        assert read(text, thinking=False, tools=tools, cut=cut) == Answer(None, text)

    @pytest.mark.parametrize("lead", ["<think>", "\n<think>\n"])
    def test_a_leading_block_is_reasoning(self, lead, tools, cut):
        text = lead + "Hm.\n</think>\n\nYes.</think>"
        assert read(text, thinking=False, tools=tools, cut=cut) == Answer("Hm.", "Yes.")

    def test_a_leading_block_that_never_closes_is_reasoning(self, tools, cut):
        assert read("<think>\nHm.\n", thinking=False, tools=tools, cut=cut) == Answer("Hm.")

    def test_an_empty_leading_block_is_nothing(self, tools, cut):
        text = "<think>\n\n</think>\n\nYes."
        assert read(text, thinking=False, tools=tools, cut=cut) == Answer(None, "Yes.")


LOOK = call("look")


class TestCallsInsideTheBlock:
    def test_a_call_ends_the_reasoning(self):
        text = f"I must look. \n\n{LOOK}"
        assert read(text, thinking=True) == Answer("I must look.", None, [("look", "{}")], 1)

    def test_it_starts_the_answer(self):
        assert read(LOOK, thinking=True) == Answer(None, None, [("look", "{}")], 1)

    def test_what_follows_is_content_and_the_closing_tag_is_dropped(self):
        text = f"I must look.\n{LOOK}\n</think>\n\n Done."
        assert read(text, thinking=True) == Answer("I must look.", "Done.", [("look", "{}")], 1)

    def test_without_tools_it_is_reasoning(self):
        text = f"Such as\n{LOOK}\nand so on.\n</think>\n\n{LOOK}\n"
        expected = Answer(f"Such as\n{LOOK}\nand so on.", f"{LOOK}\n")
        assert read(text, thinking=True, tools=None) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "A `<tool_call>` would do.",
            "<tool_call> and </tool_call>",
            '<tool_call>\n{"name": "look"}\n</tool_call>',
            "<tool_call>\n<tool_call>\n",
            "<function=look>\n</function>",
            "<tool_call><function=></function>",
            "<tool_call><function=a b></function>",
        ],
    )
    def test_markup_that_is_no_call_is_reasoning(self, text):
        expected = Answer(text.rstrip("\n"), "Yes.")
        assert read(f"{text}\n</think>\n\nYes.", thinking=True) == expected

    def test_an_opener_cut_short_is_dropped(self):
        for opener in ("<tool_call>", "<tool_call>\n<func", "<tool_call>\n<function=loo"):
            assert read(f"Hm.\n\n{opener}", thinking=True, cut=True) == Answer("Hm.")
            assert read(f"Hm.\n\n{opener}", thinking=True) == Answer(f"Hm.\n\n{opener}")

    def test_an_opener_that_the_closing_tag_follows_is_reasoning(self):
        text = "Hm <tool_call>\n</think>\n\nYes."
        assert read(text, thinking=True) == Answer("Hm <tool_call>", "Yes.")
        assert read("Hm <tool_call>\n</thi", thinking=True, cut=True) == Answer(
            "Hm <tool_call>\n</thi"
        )


class TestStreaming:
    def test_text_comes_as_soon_as_it_is_known(self):
        parser = OutputParser(thinking=True, tools=TOOLS)
        assert parser.feed("Let") == [Reasoning("Let")]
        assert parser.feed(" me") == [Reasoning(" me")]
        assert parser.feed(" see\n") == [Reasoning(" see")]
        assert parser.feed("if <") == [Reasoning("\nif")]
        assert parser.feed("/th") == []
        assert parser.feed("is") == [Reasoning(" </this")]
        assert parser.feed(".</think>") == [Reasoning(".")]
        assert parser.feed("\n\nYes") == [Content("Yes")]
        assert parser.finish(cut=False) == []

    def test_without_tools_content_waits_for_nothing(self):
        parser = OutputParser(thinking=False, tools=None)
        for piece in ("a\n", "\n \n", "<tool_call>", "<function=x", "</tool"):
            assert parser.feed(piece) == [Content(piece)]
        assert parser.finish(cut=False) == []

    def test_in_reasoning_follows_the_text(self):
        parser = OutputParser(thinking=True, tools=TOOLS)
        seen = []
        for piece in ("", "\n", "Hm", "\n", "</think>", "\n\n", "Yes"):
            parser.feed(piece)
            seen.append(parser.in_reasoning)
        assert seen == [True, True, True, True, False, False, False]

    def test_in_reasoning_when_thinking_is_off(self):
        parser = OutputParser(thinking=False, tools=None)
        assert not parser.in_reasoning
        parser.feed("<think>")
        assert parser.in_reasoning
        parser.feed("</think>")
        assert not parser.in_reasoning

    def test_in_reasoning_ends_with_a_call(self):
        parser = OutputParser(thinking=True, tools=TOOLS)
        parser.feed("<tool_call>\n")
        assert parser.in_reasoning
        parser.feed("<function=look>")
        assert not parser.in_reasoning


class TestBoundContent:
    """A grammar made the content what it is: nothing in it is markup."""

    def test_tags_in_it_are_text(self):
        for text in ('{"a": "</think>"}', '["<think>", "</think></think>"]', "</think>"):
            bound = {"tools": None, "content_is_bound": True}
            assert read(f"Hm.\n</think>\n\n{text}", thinking=True, **bound) == Answer("Hm.", text)
            assert read(text, thinking=False, **bound) == Answer(None, text)

    def test_newlines_of_its_own_are_kept(self):
        for text in ("\nyes", "\n\n\n", "a\n"):
            bound = {"tools": None, "content_is_bound": True}
            assert read(f"Hm.\n</think>\n\n{text}", thinking=True, **bound) == Answer("Hm.", text)
            assert read(text, thinking=False, **bound) == Answer(None, text)

    def test_at_its_beginning_a_think_tag_is_text(self):
        text = "<think>\nIs this one?"
        assert read(text, thinking=False, tools=None, content_is_bound=True) == Answer(None, text)
        assert read(text, thinking=False, tools=None) == Answer("Is this one?")

    def test_a_call_in_a_value_is_text_and_one_in_its_place_is_a_call(self):
        call = "<tool_call>\n<function=look>\n</function>\n</tool_call>"
        text = f'["{call}"]'
        assert read(text, thinking=False, content_is_bound=True) == Answer(None, text)
        found = read(f"Hm.\n</think>\n\n{call}", thinking=True, content_is_bound=True)
        assert (found.reasoning, found.content, len(found.calls)) == ("Hm.", None, 1)
