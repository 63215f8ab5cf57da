"""Fields beyond OpenAI's: DRY, XTC, loops, thinking budgets, token ids, prompt logprobs."""

from collections.abc import Callable
from typing import Any

import pytest

from engine import ModelConfig, SamplingParams
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader, GrammarChecker
from server.errors import BadRequest
from server.protocol import ChatCompletionRequest, CompletionRequest, parse_wire
from server.repetition import RepetitionRule
from server.tokenizer import Tokenizer
from server.valid import Generation, TokenExtras, ValidChat, ValidCompletion
from server.validate import Validator
from tests.server.text.conftest import WINDOW

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(validator: Validator, **fields: Any) -> ValidChat:
    return validator.chat(parse_wire(ChatCompletionRequest, {"messages": HI, **fields}))


def completion(validator: Validator, **fields: Any) -> ValidCompletion:
    return validator.completion(parse_wire(CompletionRequest, {"prompt": "hi", **fields}))


def of_chat(validator: Validator, **fields: Any) -> Generation:
    return chat(validator, **fields).generation


def of_completion(validator: Validator, **fields: Any) -> Generation:
    return completion(validator, **fields).generations[0]


both = pytest.mark.parametrize("ask", [of_chat, of_completion])
Ask = Callable[..., Generation]


def refusal(ask: Callable[..., Any], validator: Validator, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ask(validator, **fields)
    assert caught.value.status == 400
    return caught.value


@both
def test_off_by_default(ask: Ask, validator: Validator) -> None:
    generation = ask(validator)
    plain = SamplingParams(max_tokens=1, seed=1)
    for name in SamplingParams.__struct_fields__:
        if name.startswith(("dry_", "xtc_", "thinking_", "num_prompt")):
            assert getattr(generation.sampling, name) == getattr(plain, name)
    assert generation.repetition is None


@both
def test_dry_and_xtc_pass_through(ask: Ask, validator: Validator, tokenizer: Tokenizer) -> None:
    sampling = ask(
        validator,
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_penalty_last_n=128,
        dry_sequence_breakers=["the", "\n"],
        xtc_probability=0.5,
        xtc_threshold=0.2,
    ).sampling
    assert (sampling.dry_multiplier, sampling.dry_base) == (0.8, 2.0)
    assert (sampling.dry_allowed_length, sampling.dry_last_n) == (3, 128)
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    assert set(tokenizer.encode("\nthe")) <= set(sampling.dry_breaker_ids)
    assert all(len(breaker) > 1 for breaker in sampling.dry_breakers)
    assert sampling.dry_breakers


@both
def test_dry_defaults_are_llama_cpp_s(ask: Ask, validator: Validator, tokenizer: Tokenizer) -> None:
    sampling = ask(validator, dry_multiplier=0.8).sampling
    assert (sampling.dry_base, sampling.dry_allowed_length, sampling.dry_last_n) == (1.75, 2, -1)
    for text in ("\n", ":", '"', "*"):
        assert tokenizer.encode(text)[0] in sampling.dry_breaker_ids
    assert ask(validator, dry_multiplier=1, dry_sequence_breakers=[]).sampling.dry_breaker_ids == ()
    assert ask(validator, dry_multiplier=1, dry_penalty_last_n=0).sampling.dry_multiplier == 0
    assert ask(validator, temperature=0, xtc_probability=1).sampling.xtc_probability == 0


@both
@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("dry_multiplier", -0.1, "must be at least 0.0"),
        ("dry_multiplier", 101, "must be at most 100.0"),
        ("dry_multiplier", "1", "must be a number"),
        ("dry_base", 0.99, "must be at least 1.0"),
        ("dry_base", 101, "must be at most 100.0"),
        ("dry_allowed_length", -1, "must be at least 0"),
        ("dry_allowed_length", 1.5, "must be an integer"),
        ("dry_penalty_last_n", -2, "must be at least -1"),
        ("dry_sequence_breakers", "x", "must be a list"),
        ("dry_sequence_breakers", ["x"] * 17, "must have at most 16 entries"),
        ("dry_sequence_breakers", [""], "must hold strings of 1 to 40 characters"),
        ("dry_sequence_breakers", ["x" * 41], "must hold strings of 1 to 40 characters"),
        ("xtc_probability", -0.1, "must be at least 0.0"),
        ("xtc_probability", 1.1, "must be at most 1.0"),
        ("xtc_threshold", 1.1, "must be at most 1.0"),
        ("xtc_threshold", True, "must be a number"),
        ("prompt_logprobs", -1, "must be at least 0"),
        ("prompt_logprobs", 21, "must be at most 20"),
        ("prompt_logprobs", True, "must be an integer"),
        ("return_token_ids", 1, "must be true or false"),
        ("return_tokens_as_token_ids", "yes", "must be true or false"),
        ("timings", 1, "must be true or false"),
        ("repetition_detection", 5, "must be an object"),
    ],
)
def test_ranges(ask: Ask, field: str, value: Any, rule: str, validator: Validator) -> None:
    caught = refusal(ask, validator, **{"dry_multiplier": 1, field: value})
    assert caught.param == field
    assert caught.message == f"{field} {rule}"


@both
def test_repetition_detection(ask: Ask, validator: Validator) -> None:
    def rule(**fields: int) -> RepetitionRule | None:
        return ask(validator, repetition_detection=fields).repetition

    assert rule() is None
    assert rule(max_pattern_size=0, min_count=7) is None
    assert rule(max_pattern_size=20, min_pattern_size=3, min_count=4) == RepetitionRule(
        min_size=3, max_size=20, min_count=4
    )
    assert rule(max_pattern_size=1, min_count=2) == RepetitionRule(
        min_size=1, max_size=1, min_count=2
    )
    for wrong, message in (
        ({"max_pattern_size": 3}, "min_count must be at least 2"),
        ({"max_pattern_size": 3, "min_count": 1}, "min_count must be at least 2"),
        (
            {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2},
            "min_pattern_size must be at most max_pattern_size",
        ),
        ({"max_pattern_size": 1025}, "max_pattern_size must be at most 1024"),
        ({"min_count": -1}, "min_count must be at least 0"),
    ):
        caught = refusal(ask, validator, repetition_detection=wrong)
        assert caught.message == f"repetition_detection.{message}"


def test_extras_of_the_answer(validator: Validator) -> None:
    fields = {
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "prompt_logprobs": 3,
        "timings": True,
    }
    expected = TokenExtras(token_ids=True, tokens_as_ids=True, num_prompt_logprobs=3, timings=True)
    assert chat(validator, **fields).extras == completion(validator, **fields).extras == expected
    assert chat(validator).extras == completion(validator).extras == TokenExtras()
    assert of_chat(validator, **fields).sampling.num_prompt_logprobs == 3
    for ask in (of_chat, of_completion):
        assert refusal(ask, validator, prompt_logprobs=0, stream=True).param == "prompt_logprobs"


def test_prompt_logprobs_beside_echo(validator: Validator) -> None:
    def asked(**fields: Any) -> int | None:
        return of_completion(validator, **fields).sampling.num_prompt_logprobs

    assert asked(prompt_logprobs=0) == 0
    assert asked(prompt_logprobs=2, echo=True, logprobs=5) == 5
    assert asked(prompt_logprobs=5, echo=True, logprobs=2) == 5
    assert asked(prompt_logprobs=1, logprobs=7) == 1


def test_a_thinking_budget_binds_only_while_thinking(
    validator: Validator, tokenizer: Tokenizer
) -> None:
    def budget(**fields: Any) -> tuple[int | None, int, tuple[str, str] | None]:
        sampling = of_chat(validator, **fields).sampling
        return sampling.thinking_budget, sampling.thinking_end_id, sampling.thinking_call_tags

    close_id, tags = tokenizer.id_of("</think>"), ("<tool_call>", "<function=")
    assert close_id is not None
    assert budget(thinking_token_budget=0) == (0, close_id, None)
    assert budget(thinking_token_budget=99, tools=[TOOL]) == (99, close_id, tags)
    assert budget(thinking_token_budget=9, tools=[TOOL], tool_choice="none") == (9, close_id, None)
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert budget(thinking_token_budget=5, **off) == (None, -1, None)
    assert budget(thinking_token_budget=None) == (None, -1, None)
    for wrong in (-1, 1.5, True, "5"):
        assert refusal(of_chat, validator, thinking_token_budget=wrong).param == (
            "thinking_token_budget"
        )
    assert refusal(of_completion, validator, thinking_token_budget=5).message == (
        "thinking_token_budget is for chat only"
    )


def test_a_thinking_budget_needs_the_token(
    tiny: CheckpointText, model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThinking(Tokenizer):
        def id_of(self, name: str) -> int | None:
            return None if name == "</think>" else super().id_of(name)

    backend = tiny.tokenizer._backend
    validator = Validator(
        NoThinking(backend),
        tiny.template,
        model_config,
        tiny.defaults,
        served_names=("m",),
        max_model_len=WINDOW,
        constraints=ConstraintReader(GrammarChecker()),  # no worker starts before it is asked
    )
    for fields in ({}, {"chat_template_kwargs": {"enable_thinking": False}}):
        caught = refusal(of_chat, validator, thinking_token_budget=5, **fields)
        assert caught.param == "thinking_token_budget"
        assert "</think>" in caught.message
    assert of_chat(validator).sampling.thinking_budget is None


def test_render(validator: Validator, tokenizer: Tokenizer) -> None:
    def render(**fields: Any) -> dict[str, Any]:
        return validator.render(parse_wire(ChatCompletionRequest, {"messages": HI, **fields}))

    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    ids = tuple(tokenizer.encode(text))
    assert render() == {
        "model": "tiny",
        "prompt": text,
        "token_ids": ids,
        "count": len(ids),
        "max_model_len": WINDOW,
    }
    assert render(model="alias")["model"] == "alias"
    cut = render(truncate_prompt_tokens=3)
    assert (cut["token_ids"], cut["prompt"]) == (ids[-3:], tokenizer.decode(ids[-3:]))
    for fields in ({"tools": [TOOL]}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert render(**fields)["token_ids"] == of_chat(validator, **fields).prompt_ids
    with pytest.raises(BadRequest):
        render(temperature=0.5, max_tokens=10**9)
