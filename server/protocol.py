"""The wire shapes of requests, field names verbatim, and the one way to read them.

Rules of every model here: unknown fields are ignored; an explicit null means the default; types are
strict: 5 passes for a float and 5.0 for an integer, since JSON has one kind of number, and nothing
else passes for anything. Ranges that depend on
nothing but the field stand here, and those that the operator may set (`wire_limits`); what depends
on the model or on another field is `validate`'s.

Fields typed `Unsupported` are ones that clients of other servers send and that would change the
output: they are named so that `validate` can refuse them instead of ignoring them.
"""

from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from server.errors import BadRequest
from server.json_body import decode_json, in_turn
from server.limits import DEFAULT_LIMITS, Limits
from server.wire_limits import AtMost, breaks, limits_of

MAX_STOP_CHARS = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARS = 256
MAX_PATH_CHARS = 100
MAX_BREAKERS = 16
MAX_BREAKER_CHARS = 40  # llama.cpp cuts longer ones here
MAX_PATTERN_TOKENS = 1024
MAX_INT32 = 2**31 - 1

Unsupported = Any
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Strings = Annotated[list[str], Field(fail_fast=True)]
Choices = Annotated[int, AtMost("max_choices"), Field(ge=1)]
NumLogprobs = Annotated[int, AtMost("max_logprobs"), Field(ge=0)]
Penalty = Annotated[float, AtMost("max_penalty", both_sides=True)]
Text = str | list[dict[str, Any]] | None
Prompts = list[str] | list[list[int]]


def _are(values: list[Any], kind: type) -> bool:
    """Whether each value is exactly a `kind`: a bool is not an int."""
    return set(map(type, values)) == {kind}


def _as_integers(values: list[Any]) -> list[Any]:
    """The values, `5.0` as 5; the very list if none is written like that."""
    if float not in set(map(type, values)):
        return values
    return [_as_integer(value) for value in values]


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (UnionType, Union):
        return tuple(kind for arg in get_args(annotation) for kind in _alternatives(arg))
    return (annotation,)


def _check_content(value: Any) -> Text:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = cast(list[Any], value)
        if not parts or _are(parts, dict):
            return parts
    raise breaks("must be a string, null or a list of content parts")


def _check_prompts(value: Any, info: ValidationInfo) -> Prompts:
    """One prompt becomes a list of one."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        items = _as_integers(cast(list[Any], value))
        if _are(items, int):
            return [items]
        items = [_as_integers(i) if isinstance(i, list) else i for i in items]
        if _are(items, str) or (_are(items, list) and all(not i or _are(i, int) for i in items)):
            most = limits_of(info).max_prompts
            if len(items) > most:
                raise breaks(f"must have at most {most} prompts")
            return items
    raise breaks("must be a string, a list of strings, token ids, or a list of token-id lists")


def _check_arguments(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return cast(dict[str, Any], value)
    raise breaks("must be a JSON object as a string")


def _check_stop(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or (value and not _are(cast(list[Any], value), str)):
        raise breaks("must be a string or a list of strings")
    stops = cast(list[str], value)
    most = limits_of(info).max_stops
    if len(stops) > most:
        raise breaks(f"must have at most {most} strings")
    if not all(stops):
        raise breaks("must not hold an empty string")
    if max(map(len, stops), default=0) > MAX_STOP_CHARS:
        raise breaks(f"must not hold a string longer than {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _check_logit_bias(value: Any, info: ValidationInfo) -> dict[str, float]:
    if not isinstance(value, dict):
        raise breaks("must be an object of token ids to numbers")
    biases = cast(dict[str, Any], value)
    most = limits_of(info).max_logit_bias
    if len(biases) > most:
        raise breaks(f"must have at most {most} entries")
    for bias in biases.values():
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise breaks("must hold numbers from -100 to 100")
    return biases


class WireModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)
    _integers: ClassVar[frozenset[str]] = frozenset()  # the fields that are one, or a list of them

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls._integers = frozenset(
            name
            for name, field in cls.model_fields.items()
            if {int, list[int]}.intersection(_alternatives(field.annotation))
        )

    @model_validator(mode="before")
    @classmethod
    def _read_as_written(cls, data: Any) -> Any:
        """Leave out nulls, and take `5.0` for an integer."""
        if not isinstance(data, dict):
            return data
        fields = {k: v for k, v in cast(dict[str, Any], data).items() if v is not None}
        for name in cls._integers & fields.keys():
            value = fields[name]
            fields[name] = _as_integers(value) if isinstance(value, list) else _as_integer(value)
        return fields


class FunctionCall(WireModel):
    name: str = Field(min_length=1)
    arguments: Annotated[
        str | dict[str, Any],
        PlainValidator(_check_arguments, json_schema_input_type=str | dict[str, Any]),
    ] = ""


class ToolCall(WireModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(WireModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Text, PlainValidator(_check_content, json_schema_input_type=Text)] = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = Field(default=[], fail_fast=True)
    tool_call_id: str | None = None


class StreamOptionsFields(WireModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class RepetitionDetectionFields(WireModel):
    """vLLM's: the last tokens are `min_count` times the same pattern; `max_pattern_size` 0: off."""

    max_pattern_size: int = Field(default=0, ge=0, le=MAX_PATTERN_TOKENS)
    min_pattern_size: int = Field(default=0, ge=0, le=MAX_PATTERN_TOKENS)  # 0: 1
    min_count: int = Field(default=0, ge=0, le=MAX_INT32)


class SamplingFields(WireModel):
    """What chat and completions share."""

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    # None: as the checkpoint says.
    temperature: Annotated[float | None, AtMost("max_temperature")] = Field(default=None, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=-1)  # -1 and 0: off
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: float = Field(default=1.0, gt=0)
    seed: Int64 | None = None
    n: Choices = 1
    best_of: Choices | None = None  # no effect
    stop: Annotated[
        tuple[str, ...], PlainValidator(_check_stop, json_schema_input_type=str | list[str])
    ] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: TokenIds = []
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0)
    logit_bias: Annotated[
        dict[str, float], PlainValidator(_check_logit_bias, json_schema_input_type=dict[str, float])
    ] = {}
    allowed_token_ids: TokenIds | None = None
    bad_words: Strings = Field(default=[], max_length=MAX_BAD_WORDS)
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1)
    priority: Int64 = 0
    cache_salt: str | None = Field(default=None, min_length=1)
    # DRY and XTC under llama.cpp's names, with its defaults.
    dry_multiplier: float = Field(default=0.0, ge=0, le=100)
    dry_base: float = Field(default=1.75, ge=1, le=100)
    dry_allowed_length: int = Field(default=2, ge=0, le=MAX_INT32)
    dry_penalty_last_n: int = Field(default=-1, ge=-1, le=MAX_INT32)
    dry_sequence_breakers: Strings = Field(default=["\n", ":", '"', "*"], max_length=MAX_BREAKERS)
    xtc_probability: float = Field(default=0.0, ge=0, le=1)
    xtc_threshold: float = Field(default=0.1, ge=0, le=1)
    repetition_detection: RepetitionDetectionFields | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    prompt_logprobs: NumLogprobs | None = None
    timings: bool = False
    stream: bool = False
    stream_options: StreamOptionsFields | None = None

    # What the answer has to look like: `constraints` knows which values.
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    regex: Any = None
    ebnf: Any = None
    json_schema: Any = None
    structural_tag: Any = None
    thinking_token_budget: Unsupported = None
    prompt_embeds: Unsupported = None
    use_beam_search: Unsupported = None
    logits_processors: Unsupported = None


class ChatPromptFields(WireModel):
    """What decides the rendered prompt of a chat, wherever one is sent."""

    tools: Annotated[list[dict[str, Any]] | None, AtMost("max_tools")] = Field(
        default=None, min_length=1, fail_fast=True
    )
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: str | None = Field(default=None, min_length=1)
    add_generation_prompt: bool | None = None  # None: unless the final message is continued
    continue_final_message: bool = False
    chat_template: Unsupported = None


class ChatCompletionRequest(SamplingFields, ChatPromptFields):
    messages: Annotated[list[ChatMessage], AtMost("max_messages")] = Field(
        min_length=1, fail_fast=True
    )
    add_special_tokens: bool = False
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: NumLogprobs | None = None
    tool_choice: Any = None  # `validate_tools` knows which
    parallel_tool_calls: bool = True
    include_reasoning: bool = True
    thinking_token_budget: int | None = Field(default=None, ge=0, le=MAX_INT32)

    echo: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None


class CompletionRequest(SamplingFields):
    prompt: Annotated[
        Prompts,
        PlainValidator(
            _check_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ]
    add_special_tokens: bool = True
    echo: bool = False
    logprobs: NumLogprobs | None = None
    suffix: Unsupported = None


class TokenizeRequest(ChatPromptFields):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage] | None, AtMost("max_messages")] = Field(
        default=None, min_length=1, fail_fast=True
    )
    add_special_tokens: bool | None = None  # None: true for a prompt, false for messages
    return_token_strs: bool = False


class DetokenizeRequest(WireModel):
    model: str | None = None
    tokens: TokenIds


Model = TypeVar("Model", bound=WireModel)

_RULES = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "rule": "{rule}",
}


def parse_body(model_type: type[Model], body: bytes, limits: Limits) -> Model:
    """Read a request as it came."""
    with in_turn(body):
        return parse_wire(model_type, decode_json(body, limits.max_json_depth), limits)


def parse_wire(
    model_type: type[Model], fields: dict[str, Any], limits: Limits = DEFAULT_LIMITS
) -> Model:
    """Read a decoded body, or raise a BadRequest that names the first bad field and its rule."""
    try:
        return model_type.model_validate(fields, context=limits)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(map(str, first["loc"]))[:MAX_PATH_CHARS]
    rule = _RULES.get(first["type"], "is not valid").format_map(first.get("ctx", {}))
    raise BadRequest(f"{path} {rule}", param=path)
