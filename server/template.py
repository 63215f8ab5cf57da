"""Chat template rendering, with the environment transformers gives its templates.

The template is the checkpoint's and runs in jinja2's immutable sandbox. It sees plain JSON values:
messages, tools, and those extra arguments it names itself; it never sees Python objects of ours.
Output size and time are bounded. What the template says through `raise_exception` reaches the
client; any other failure is reported without its text, which would be jinja2's or Python's.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import BadRequest

MAX_REFUSAL_CHARS = 200
TURN_HEADER = "<|im_start|>"
ANSWER_HEADER = "<|im_start|>assistant"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# Arguments that are the renderer's own: a client's `chat_template_kwargs` never reach them.
_OWN_NAMES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,  # RecursionError is one
    TypeError,
    ValueError,
)


class _Refusal(jinja2.TemplateError):
    """What a template says through `raise_exception`."""


class TooLong(Exception):
    """A rendered prompt has more characters than it may have."""


class ChatTemplate:
    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        time_limit_s: float = 10.0,
    ) -> None:
        """`special_tokens` are variables such as `bos_token`. Raises ValueError on bad syntax."""
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the chat template does not compile: line {error.lineno}: {error.message}"
            ) from None
        self._special_tokens = dict(special_tokens or {})
        self._time_limit_s = time_limit_s
        self.kwarg_names = (  # names a client may set
            frozenset(jinja2.meta.find_undeclared_variables(tree))
            - environment.globals.keys()
            - self._special_tokens.keys()
            - _OWN_NAMES
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,
        max_chars: int,
    ) -> str:
        """Render a prompt; names the template does not use are dropped.

        Raises BadRequest, and TooLong for one of more than `max_chars`.

        `continue_final_message` ends the prompt inside the last message: in its reasoning if it has
        `reasoning_content` and no content, else in its content.
        """
        given = {name: value for name, value in (kwargs or {}).items() if name in self.kwarg_names}
        marker = secrets.token_hex(16) if continue_final_message else ""
        variables = {
            "messages": _with_marker(messages, marker) if continue_final_message else messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            **self._special_tokens,
            **given,
        }
        prompt = self._run(variables, max_chars + len(marker))
        return _cut_at_marker(prompt, marker, messages[-1]) if continue_final_message else prompt

    def _run(self, variables: dict[str, Any], max_chars: int) -> str:
        deadline = time.monotonic() + self._time_limit_s
        num_chars = 0
        pieces: list[str] = []
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > max_chars:
                    raise TooLong
                if time.monotonic() > deadline:
                    raise BadRequest(
                        "messages: the chat template took too long to render", param="messages"
                    )
        except _Refusal as refusal:
            said = str(refusal.message)[:MAX_REFUSAL_CHARS]
            raise BadRequest(f"messages: {said}", param="messages") from None
        except _TEMPLATE_FAULTS:
            raise BadRequest(
                "messages: the chat template cannot render this conversation", param="messages"
            ) from None
        return "".join(pieces)


def starts_in_reasoning(prompt: str) -> bool:
    """Whether `prompt` ends inside an open reasoning block of the answer it begins.

    Only the text after the last turn header counts: tool instructions, history and user text may
    hold any tags. A closed block means content, whatever follows it.
    """
    header = prompt.rfind(TURN_HEADER)
    if header < 0 or not prompt.startswith(ANSWER_HEADER, header):
        return False
    answer = prompt[header + len(ANSWER_HEADER) :]
    return answer.lstrip().startswith(THINK_OPEN) and THINK_CLOSE not in answer


def _continued_field(message: Mapping[str, Any]) -> str:
    reasons = "reasoning_content" in message and not message["content"]
    return "reasoning_content" if reasons else "content"


def _with_marker(messages: Sequence[Mapping[str, Any]], marker: str) -> list[Mapping[str, Any]]:
    last = messages[-1]
    field = _continued_field(last)
    return [*messages[:-1], {**last, field: f"{last[field]}{marker} "}]


def _cut_at_marker(prompt: str, marker: str, last: Mapping[str, Any]) -> str:
    """End the prompt where the marker stands; trim trailing space where the template trims."""
    end = prompt.rfind(marker)
    if end < 0:
        raise BadRequest(
            "continue_final_message: the chat template does not keep the final message",
            param="continue_final_message",
        )
    text = last[_continued_field(last)]
    keeps_space = prompt.startswith(" ", end + len(marker))
    if keeps_space or not text.strip():
        return prompt[:end]
    return prompt[:end].rstrip()


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    names = cast(dict[str, Any], environment.globals)
    names["raise_exception"] = _raise_exception
    names["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks answers for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it this way)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace jinja2's filter, which escapes HTML; the separators are Python's."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
