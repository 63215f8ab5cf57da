from typing import Any

import pytest

from engine import ModelConfig
from server.checkpoint_text import CheckpointText
from server.constraints import ConstraintReader
from server.errors import BadRequest
from server.protocol import CompletionRequest, DetokenizeRequest, TokenizeRequest, parse_wire
from server.valid import StreamOptions, ValidCompletion
from server.validate import Validator
from tests.server.text.conftest import VOCAB_SIZE, WINDOW
from tests.server.text.test_validate_chat import chat


def complete(validator: Validator, prompt: Any = "hi", **fields: Any) -> ValidCompletion:
    return validator.completion(parse_wire(CompletionRequest, {"prompt": prompt, **fields}))


def refused(validator: Validator, prompt: Any = "hi", **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        complete(validator, prompt, **fields)
    return caught.value


def test_the_least_request(validator: Validator, tiny: CheckpointText):
    valid = complete(validator, "hi there")
    (generation,) = valid.generations
    assert generation.prompt_ids == tuple(tiny.tokenizer.encode("hi there"))
    assert generation.sampling.max_tokens == 16
    assert generation.sampling.num_logprobs is None
    assert generation.sampling.num_prompt_logprobs is None
    assert valid.prompt_texts == ("hi there",)
    assert valid.stream is None
    assert valid.echo is False
    assert valid.num_logprobs is None
    assert complete(validator, stream=True).stream == StreamOptions()


def test_what_the_queue_could_never_take(
    tiny: CheckpointText, model_config: ModelConfig, reader: ConstraintReader
):
    """Answered like that for ever, a 429 would ask to try again for ever."""
    validator = Validator(
        tiny.tokenizer,
        tiny.template,
        model_config,
        tiny.defaults,
        served_names=("tiny",),
        max_model_len=WINDOW,
        constraints=reader,
        queue_size=6,
    )
    assert len(complete(validator, ["hi"] * 3, n=2).generations) == 3
    caught = refused(validator, ["hi"] * 4, n=2)
    assert (caught.status, caught.param) == (400, "n")
    assert "8 answers" in caught.message
    assert "takes 6" in caught.message
    assert refused(validator, ["hi"] * 7).param == "prompt"
    assert chat(validator, n=6).generation.n == 6
    with pytest.raises(BadRequest, match=r"^n: 7 answers"):
        chat(validator, n=7)


def test_prompt_forms(validator: Validator, tiny: CheckpointText):
    ids = tiny.tokenizer.encode("hi")
    many = complete(validator, ["hi", "hi there"])
    assert many.prompt_texts == ("hi", "hi there")
    assert many.generations[0].prompt_ids == tuple(ids)
    assert complete(validator, ids).generations[0].prompt_ids == tuple(ids)
    assert complete(validator, ids).prompt_texts == ("hi",)
    assert [g.prompt_ids for g in complete(validator, [ids, [1]]).generations] == [
        tuple(ids),
        (1,),
    ]


@pytest.mark.parametrize("prompt", ["", ["a", ""], [[]], [[1], []]])
def test_empty_prompts(validator: Validator, prompt: Any):
    assert refused(validator, prompt).message == "prompt must not be empty"


def test_prompt_ids_are_rows_of_the_embedding(validator: Validator):
    assert complete(validator, [VOCAB_SIZE - 1]).generations
    for ids in ([VOCAB_SIZE], [-1], [[1], [2**70]]):
        caught = refused(validator, ids)
        assert caught.message == f"prompt must hold token ids from 0 to {VOCAB_SIZE - 1}"


def test_prompts_past_the_window(validator: Validator):
    assert complete(validator, [1] * (WINDOW - 1)).generations[0].sampling.max_tokens == 1
    for prompt in ([1] * WINDOW, "☃" * WINDOW):
        caught = refused(validator, prompt)
        assert caught.code == "context_length_exceeded"
        assert f"maximum context length is {WINDOW} tokens" in caught.message
    caught = refused(validator, "x" * (16 * WINDOW + 1))
    assert f"more than {16 * WINDOW} characters" in caught.message
    assert caught.code == "context_length_exceeded"


def test_max_tokens(validator: Validator):
    assert complete(validator, [1] * 250).generations[0].sampling.max_tokens == 6
    assert complete(validator, max_tokens=WINDOW).generations[0].sampling.max_tokens < WINDOW
    assert refused(validator, max_tokens=WINDOW + 1).param == "max_tokens"
    assert refused(validator, max_tokens=0).param == "max_tokens"
    assert complete(validator, max_tokens=0, echo=True).generations[0].sampling.max_tokens == 0
    validator.max_model_len = 10
    assert complete(validator, [1] * 4).generations[0].sampling.max_tokens == 6


def test_logprobs_and_echo(validator: Validator):
    plain = complete(validator, logprobs=3).generations[0].sampling
    assert (plain.num_logprobs, plain.num_prompt_logprobs) == (3, None)
    valid = complete(validator, logprobs=0, echo=True)
    sampling = valid.generations[0].sampling
    assert (sampling.num_logprobs, sampling.num_prompt_logprobs) == (0, 0)
    assert valid.echo is True
    assert valid.num_logprobs == 0
    assert complete(validator, echo=True).generations[0].sampling.num_prompt_logprobs is None


def test_truncation(validator: Validator, tiny: CheckpointText):
    valid = complete(validator, "the dog", truncate_prompt_tokens=1)
    assert valid.prompt_texts == (" dog",)
    assert valid.generations[0].prompt_ids == tuple(tiny.tokenizer.encode(" dog"))


def test_seeds_of_a_batch(validator: Validator):
    def seeds(**fields: Any) -> set[int]:
        generations = complete(validator, ["a", "b", "c"], **fields).generations
        return {generation.sampling.seed for generation in generations}

    assert seeds(seed=5) == {5}
    assert len(seeds()) == 3


def test_refused_fields(validator: Validator):
    assert refused(validator, suffix="x").message == "suffix is not supported"
    assert refused(validator, suffix="").param == "suffix"


def test_structured_output_binds_from_the_first_token(validator: Validator):
    sampling = complete(validator, response_format={"type": "json_object"}).generations[0].sampling
    assert sampling.grammar is not None
    assert sampling.grammar.after_token_id is None
    assert refused(validator, thinking_token_budget=0).param == "thinking_token_budget"
    assert refused(validator, model="other").code == "model_not_found"
    assert complete(validator, best_of=3).generations[0].n == 1


def tokenize(validator: Validator, **fields: Any) -> dict[str, Any]:
    return validator.tokenize(parse_wire(TokenizeRequest, fields))


def detokenize(validator: Validator, **fields: Any) -> dict[str, Any]:
    return validator.detokenize(parse_wire(DetokenizeRequest, fields))


def test_tokenizing_text(validator: Validator, tiny: CheckpointText):
    ids = tiny.tokenizer.encode("the dog<|im_end|>")
    assert tokenize(validator, prompt="the dog<|im_end|>") == {
        "count": 3,
        "max_model_len": WINDOW,
        "tokens": ids,
        "token_strs": None,
    }
    answer = tokenize(validator, prompt="the dog", return_token_strs=True)
    assert answer["token_strs"] == ["the", "Ġdog"]
    assert tokenize(validator, prompt="")["tokens"] == []
    assert tokenize(validator, prompt="☃" * WINDOW)["count"] > WINDOW


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"add_generation_prompt": False},
    ],
)
def test_tokenizing_a_chat_counts_its_prompt(validator: Validator, fields: dict[str, Any]):
    messages = [{"role": "user", "content": "hi"}]
    answer = tokenize(validator, messages=messages, **fields)
    generation = chat(validator, messages=messages, **fields).generation
    assert tuple(answer["tokens"]) == generation.prompt_ids
    assert answer["count"] == len(generation.prompt_ids)


def test_bad_token_requests(validator: Validator):
    messages = [{"role": "user", "content": "hi"}]
    for fields in (
        {},
        {"prompt": "a", "messages": messages},
        {"prompt": "x" * (16 * WINDOW + 1)},
        {"messages": [{"role": "assistant"}]},
        {"messages": messages, "chat_template": "x"},
        {"messages": messages, "tools": [{}]},
        {"prompt": "a", "model": "other"},
    ):
        with pytest.raises(BadRequest):
            tokenize(validator, **fields)
    for tokens in ([VOCAB_SIZE], [-1]):
        with pytest.raises(BadRequest, match="tokens must hold token ids from 0 to 511"):
            detokenize(validator, tokens=tokens)
    with pytest.raises(BadRequest, match="no such model"):
        detokenize(validator, tokens=[1], model="other")
    with pytest.raises(BadRequest, match="at most 4096 entries"):
        detokenize(validator, tokens=[1] * (16 * WINDOW + 1))


@pytest.mark.parametrize("text", ["", " a\n\nb ", "naïve ☃ <think> x<|im_end|>", "\x00"])
def test_text_round_trips(validator: Validator, text: str):
    tokens = tokenize(validator, prompt=text)["tokens"]
    assert detokenize(validator, tokens=tokens) == {"prompt": text}
    assert detokenize(validator, tokens=[VOCAB_SIZE - 1]) == {"prompt": ""}
