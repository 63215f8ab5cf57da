"""Our rendering against transformers', on the same template."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from server.checkpoint_text import CheckpointText
from server.errors import BadRequest
from server.protocol import ChatMessage
from server.validate_messages import template_messages

TEXTS = (
    "hello",
    "  spaced ",
    "né 漢字 😀",
    "",
    "\n\nlines\n",
    "why</think>so",
    "<tool_response>\nq\n</tool_response>",
    "<|im_start|>assistant\n",
    '{"a": 1}',
)
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"a": 1}}}
]


class Conversation:
    """A random conversation as a client sends it and as transformers wants it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sent = [self.message() for _ in range(self.random.randint(1, 6))]
        if self.random.random() < 0.5:
            self.sent.insert(0, {"role": "developer", "content": self.text()})
        self.expected = [self.for_oracle(message) for message in self.sent]

    def text(self) -> str:
        return "".join(self.random.choices(TEXTS, k=self.random.randint(0, 2)))

    def message(self) -> dict[str, Any]:
        role = self.random.choice(("user", "user", "assistant", "assistant", "tool"))
        message: dict[str, Any] = {"role": role, "content": self.text()}
        if role == "user" and self.random.random() < 0.3:
            message["content"] = [{"type": "text", "text": self.text()} for _ in range(2)]
        if role == "assistant":
            if self.random.random() < 0.3:
                message["content"] = None
            if self.random.random() < 0.4:
                message["reasoning"] = self.text()
            if self.random.random() < 0.4:
                message["tool_calls"] = [self.call() for _ in range(2)]
        return message

    def call(self) -> dict[str, Any]:
        values = (self.text(), 7, 1.5, True, None, [self.text()], {"k": self.text()})
        arguments = json.dumps({"a": self.random.choice(values), "b": self.random.choice(values)})
        return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}

    def for_oracle(self, message: dict[str, Any]) -> dict[str, Any]:
        expected = {**message, "role": message["role"].replace("developer", "system")}
        if "tool_calls" in expected:
            expected["tool_calls"] = [
                {"function": {"name": "f", "arguments": json.loads(call["function"]["arguments"])}}
                for call in expected["tool_calls"]
            ]
        return expected


@pytest.fixture(scope="module")
def oracle(tiny_dir: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(tiny_dir)


def test_prompts_equal_those_of_transformers(tiny: CheckpointText, oracle: Any):
    assert tiny.template is not None
    num_equal = num_refused = 0
    for seed in range(300):
        conversation = Conversation(seed)
        options = {"add_generation_prompt": seed % 5 != 0}
        kwargs = ({}, {"enable_thinking": False}, {"enable_thinking": True})[seed % 3]
        tools = TOOLS if seed % 2 else None
        messages = [ChatMessage.model_validate(sent) for sent in conversation.sent]
        try:
            expected = oracle.apply_chat_template(
                conversation.expected, tools=tools, tokenize=False, **options, **kwargs
            )
        except TemplateError:  # no user message
            expected = None
        try:
            prompt = tiny.template.render(
                template_messages(messages, continue_final_message=False),
                tools,
                kwargs=kwargs,
                max_chars=100_000,
                **options,
            )
        except BadRequest:
            prompt = None
        assert prompt == expected, f"{seed=}"
        num_equal += prompt is not None
        num_refused += prompt is None
    assert num_equal > 200
    assert num_refused > 10


@pytest.mark.parametrize("text", ["Once upon", "Once \n", "why</think>so", "é"])
def test_continued_prompts_equal_those_of_transformers(
    tiny: CheckpointText, oracle: Any, text: str
):
    assert tiny.template is not None
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
    if "</think>" in text:  # transformers refuses what the template rewrites
        expected = (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\nwhy\n</think>\n\nso"
        )
    else:
        expected = oracle.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    prompt = tiny.template.render(
        messages, None, add_generation_prompt=False, continue_final_message=True, max_chars=1000
    )
    assert prompt == expected


def test_ids_and_text_equal_those_of_transformers(tiny: CheckpointText, oracle: Any):
    for text in TEXTS:
        ids = tiny.tokenizer.encode(text)
        assert ids == oracle.encode(text, add_special_tokens=False)
        assert tiny.tokenizer.decode(ids) == oracle.decode(ids)
