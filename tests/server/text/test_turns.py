"""Which ends of turns are named to the prefix cache."""

from typing import Any

import pytest

from server.checkpoint_text import CheckpointText
from server.template import ChatTemplate
from server.tokenizer import Tokenizer
from server.turns import Turns

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "What is the weather?"}
CALL = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "Look.",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": "x"}}}],
}
RESULT = {"role": "tool", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "It is sunny."}


@pytest.fixture(scope="module")
def template(tiny: CheckpointText) -> ChatTemplate:
    assert tiny.template is not None
    return tiny.template


def named(template: ChatTemplate, tokenizer: Tokenizer, *messages: dict[str, Any]) -> list[str]:
    """The text behind each boundary, up to the end of its line."""
    text = template.render(messages, None, add_generation_prompt=True, max_chars=10_000)
    ids = tokenizer.encode(text)
    boundaries = Turns(tokenizer).boundaries(ids)
    assert list(boundaries) == sorted(set(boundaries))
    return [tokenizer.decode(ids[boundary:]).splitlines()[0] for boundary in boundaries]


def test_a_first_question(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    found = named(template, tokenizer, SYSTEM, QUESTION)
    assert found == ["<|im_start|>user", "<|im_start|>assistant"]


def test_without_a_system_prompt_the_question_is_the_first_turn(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    assert named(template, tokenizer, QUESTION) == ["<|im_start|>assistant"]


def test_a_loop_of_tools_names_the_end_of_its_question(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    messages = [SYSTEM, QUESTION, ANSWER, QUESTION, CALL, RESULT, CALL, RESULT]
    found = named(template, tokenizer, *messages)
    assert found == ["<|im_start|>user", "<|im_start|>assistant", "<|im_start|>assistant"]
    text = template.render(messages, None, add_generation_prompt=True, max_chars=10_000)
    ids = tokenizer.encode(text)
    _, question_end, answer_start = Turns(tokenizer).boundaries(ids)
    assert tokenizer.decode(ids[question_end:]).startswith("<|im_start|>assistant\n<think>\nLook.")
    assert tokenizer.decode(ids[:question_end]).count("What is the weather?") == 2
    assert tokenizer.decode(ids[answer_start:]) == "<|im_start|>assistant\n<think>\n"


def test_text_without_turns_names_nothing(tokenizer: Tokenizer) -> None:
    turns = Turns(tokenizer)
    assert turns.boundaries(tokenizer.encode("Once upon a time")) == ()
    assert turns.boundaries([]) == ()
    assert turns.boundaries(tokenizer.encode("<|im_start|>")) == ()
