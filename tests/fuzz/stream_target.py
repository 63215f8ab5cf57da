"""The target `stream`: whatever bytes a model says, the events of a stream are read back as sent.

The bytes become tokens of one byte each, so that characters fall apart between them. Two readers,
one by the letter of the standard and the one of OpenAI's SDK, have to find the same events in the
answer, and in them the text that was said, with U+FFFD for what is no UTF-8.
"""

import asyncio
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from openai._streaming import SSEDecoder

from engine import ModelConfig
from server.checkpoint_text import CheckpointText, read_checkpoint_text
from server.constraints import ConstraintReader, GrammarChecker
from server.validate import Validator
from tests.fakes import build_server
from tests.fuzz.choices import Choices
from tests.server.http.asking import CHAT, COMPLETIONS, Call, chat
from tests.server.text.tiny_tokenizer import build_tiny_tokenizer

MAX_PIECES = 40
PIECES = [
    *(
        b"x",
        b" ",
        b"\r",
        b"\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\x00",
        b"\x0b\x0c\x1c\x85",
        b"\xef\xbb\xbf",
    ),
    *(b"data: ", b"data: [DONE]\n\n", b"event: error\n", b": ", b"id: 1\n", b"retry: 1\n\n"),
    *("\u2028".encode(), "\u2029".encode(), "\u0085".encode(), "é".encode(), "😀".encode()),
    *(b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80", b"\xff", b"\xf0\x9f", b'"', b"\\", b"\\ud800"),
]
PATHS = (CHAT, COMPLETIONS, "/v1/responses", "/v1/messages")


def stream(data: bytes) -> None:
    choices = Choices(data)
    path = choices.one_of(PATHS)
    said = b""
    for _ in range(MAX_PIECES):
        if choices.is_empty:
            break
        said += choices.one_of(PIECES)
    body = asyncio.run(_streamed(path, said))
    events = _by_the_standard(body)
    sdk = [(one.event or "", one.data) for one in SSEDecoder().iter_bytes(iter([body]))]
    assert sdk == events
    assert "\r" not in body.decode().replace("\\r", "")
    payloads = [json.loads(payload) for _, payload in events if payload != "[DONE]"]
    assert "".join(map(_text_of, payloads)) == said.decode("utf-8", "replace")
    if path in (CHAT, COMPLETIONS):
        assert events[-1] == ("", "[DONE]")
        assert body == b"".join(b"data: %s\n\n" % payload.encode() for _, payload in events)
    else:
        assert [event for event, _ in events] == [payload["type"] for payload in payloads]


def _text_of(payload: dict[str, Any]) -> str:
    """What an event adds to the text of an answer."""
    match payload.get("type"):
        case "response.output_text.delta":
            return payload["delta"]
        case "content_block_delta":
            return payload["delta"]["text"]
        case None:
            (choice,) = payload["choices"]
            return choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        case _:
            return ""


async def _streamed(path: str, said: bytes) -> bytes:
    checkpoint, validator, id_of = _parts()
    server = build_server(validator, checkpoint.tokenizer)
    end_id = checkpoint.tokenizer.id_of("<|im_end|>")
    assert end_id is not None
    server.engine.will(*[(id_of[byte],) for byte in said], (end_id,))
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    bodies: dict[str, dict[str, Any]] = {
        CHAT: chat(),
        COMPLETIONS: {"prompt": "a", "max_tokens": 1000},
        "/v1/responses": {"input": "a", **kwargs},
        "/v1/messages": {**chat(), "max_tokens": 1000},
    }
    call = Call(server.app, path, {**bodies[path], "stream": True})
    await call.done()
    assert call.status == 200, call.body
    return call.body


@functools.cache
def _parts() -> tuple[CheckpointText, Validator, list[int]]:
    """A checkpoint, its validator, and the token of each byte."""
    with tempfile.TemporaryDirectory() as folder:
        build_tiny_tokenizer(Path(folder))
        checkpoint = read_checkpoint_text(Path(folder))
    config = ModelConfig.from_dict(
        {
            "architectures": ["Qwen3_5ForCausalLM"],
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "eos_token_id": 7,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "intermediate_size": 64,
        }
    )
    validator = Validator(
        checkpoint.tokenizer,
        checkpoint.template,
        config,
        checkpoint.defaults,
        served_names=("tiny",),
        max_model_len=4096,
        constraints=ConstraintReader(GrammarChecker()),  # no worker starts: nobody asks it
    )
    tokenizer = checkpoint.tokenizer
    by_bytes = {
        tokenizer.token_bytes(i): i
        for i in range(tokenizer.num_real_tokens)
        if not tokenizer.is_special(i)
    }
    return checkpoint, validator, [by_bytes[bytes([byte])] for byte in range(256)]


def _by_the_standard(body: bytes) -> list[tuple[str, str]]:
    """(event, data) of each event: https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    text = body.decode("utf-8").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert lines[-1] == ""
    events: list[tuple[str, str]] = []
    event, data = "", list[str]()
    for line in lines[:-1]:
        if not line:
            if data:
                events.append((event, "\n".join(data)))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        assert name in ("event", "data"), line
        if name == "event":
            event = value
        else:
            data.append(value)
    assert not data, "the last event has no end"
    return events
