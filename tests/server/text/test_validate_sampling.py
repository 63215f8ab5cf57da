from typing import Any

import pytest

from engine import ModelConfig, SamplingParams
from server.checkpoint_text import CheckpointText, GenerationDefaults
from server.constraints import ConstraintReader, GrammarChecker
from server.errors import BadRequest
from server.protocol import CompletionRequest, parse_wire
from server.valid import Generation
from server.validate import Validator
from tests.server.text.conftest import VOCAB_SIZE, WINDOW


def generation(validator: Validator, **fields: Any) -> Generation:
    request = parse_wire(CompletionRequest, {"prompt": "hi", **fields})
    return validator.completion(request).generations[0]


def sampling(validator: Validator, **fields: Any) -> SamplingParams:
    return generation(validator, **fields).sampling


def refused(validator: Validator, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        generation(validator, **fields)
    assert caught.value.status == 400
    return caught.value


def with_defaults(tiny: CheckpointText, model_config: ModelConfig, **defaults: Any) -> Validator:
    return Validator(
        tiny.tokenizer,
        tiny.template,
        model_config,
        GenerationDefaults(**defaults),
        served_names=("m",),
        max_model_len=WINDOW,
        constraints=ConstraintReader(GrammarChecker()),  # no worker starts before it is asked
    )


def test_the_temperature_is_the_checkpoint_s_and_other_defaults_are_the_api_s(
    tiny: CheckpointText, model_config: ModelConfig
):
    validator = with_defaults(tiny, model_config, temperature=0.6, eos_ids=frozenset({9}))
    params = sampling(validator)
    assert params.temperature == 0.6
    assert params.top_p == 1.0
    assert params.top_k == 0
    assert params.min_p == 0.0
    assert params.repetition_penalty == 1.0
    assert params.presence_penalty == params.frequency_penalty == 0.0
    assert set(params.stop_token_ids) == tiny.tokenizer.eos_ids | {9, 7}


def test_what_is_left_out_can_be_the_checkpoint_s(tiny: CheckpointText, model_config: ModelConfig):
    sampling_ = {"top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
    validator = with_defaults(tiny, model_config, temperature=0.6, sampling=sampling_)
    params = sampling(validator)
    assert (params.top_p, params.top_k, params.min_p) == (0.8, 20, 0.1)
    assert params.repetition_penalty == 1.05
    params = sampling(validator, top_p=1.0, top_k=-1, min_p=None, repetition_penalty=1)
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.1)
    assert params.repetition_penalty == 1.0


def test_the_request_wins(validator: Validator):
    params = sampling(
        validator,
        temperature=2,
        top_p=0.5,
        top_k=-1,
        min_p=1,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=0.5,
    )
    assert params.temperature == 2.0
    assert params.top_p == 0.5
    assert params.top_k == 0
    assert params.min_p == 1.0
    assert params.presence_penalty == -2.0
    assert params.frequency_penalty == 2.0
    assert params.repetition_penalty == 0.5


def test_a_greedy_default(tiny: CheckpointText, model_config: ModelConfig):
    validator = with_defaults(tiny, model_config, temperature=0.0)
    assert sampling(validator).temperature == 0.0
    assert sampling(validator, temperature=0.7).temperature == 0.7


def test_greedy_drops_what_it_ignores(validator: Validator):
    for temperature in (0, 0.0, 1e-9):
        params = sampling(validator, temperature=temperature, top_k=5, top_p=0.5, min_p=0.5)
        assert params.temperature == 0.0
        assert (params.top_k, params.top_p, params.min_p) == (0, 1.0, 0.0)


def test_extremes_are_brought_into_what_fp32_holds(validator: Validator):
    assert sampling(validator, repetition_penalty=1e-300).repetition_penalty == 1e-5
    assert sampling(validator, repetition_penalty=1e300).repetition_penalty == 1e5
    assert sampling(validator, repetition_penalty=50).repetition_penalty == 50
    assert sampling(validator, top_k=10**30).top_k == 0
    assert sampling(validator, top_k=VOCAB_SIZE - 1).top_k == VOCAB_SIZE - 1


def test_seeds(validator: Validator):
    for seed in (0, -1, 2**63 - 1, -(2**63)):
        assert sampling(validator, seed=seed).seed == seed
    drawn = {sampling(validator).seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_choices_differ_in_their_seed_only(validator: Validator):
    valid = generation(validator, seed=5, n=3)
    requests = [valid.request("r", choice) for choice in range(valid.n)]
    assert requests[0].sampling.seed == 5
    assert len({request.sampling.seed for request in requests}) == 3


def test_ends(validator: Validator, tiny: CheckpointText):
    ends = tiny.tokenizer.eos_ids | {7}
    plain = generation(validator, stop_token_ids=[3, 3, 1])
    assert plain.sampling.stop_token_ids == tuple(sorted(ends | {1, 3}))
    assert plain.eos_ids == ends
    ignoring = generation(validator, stop_token_ids=[3], ignore_eos=True)
    assert ignoring.sampling.stop_token_ids == (3,)
    assert ignoring.eos_ids == frozenset()


def test_an_eos_outside_the_embedding_is_left_out(tiny: CheckpointText, model_config: ModelConfig):
    validator = with_defaults(tiny, model_config, eos_ids=frozenset({VOCAB_SIZE, 5}))
    assert generation(validator).eos_ids == tiny.tokenizer.eos_ids | {5, 7}


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids"])
def test_token_ids_are_rows_of_the_embedding(validator: Validator, name: str):
    sampling(validator, **{name: [0, VOCAB_SIZE - 1]})
    for token_id in (-1, VOCAB_SIZE, 2**70):
        caught = refused(validator, **{name: [1, token_id]})
        assert caught.message == f"{name} must hold token ids from 0 to {VOCAB_SIZE - 1}"
        assert caught.param == name


def test_logit_bias(validator: Validator):
    params = sampling(validator, logit_bias={"5": -100, "3": 1.5, "003": 2})
    assert params.logit_bias == ((3, 2.0), (5, -100.0))
    for key in ("512", "-1", "x", "", "1.0", "٣", " 1", "1_0", "9" * 5000):
        caught = refused(validator, logit_bias={key: 1})
        assert caught.message == f"logit_bias keys must be token ids from 0 to {VOCAB_SIZE - 1}"


def test_allowed_ids(validator: Validator):
    assert sampling(validator).allowed_token_ids is None
    assert sampling(validator, allowed_token_ids=[9, 3, 9]).allowed_token_ids == (3, 9)
    assert refused(validator, allowed_token_ids=[]).param == "allowed_token_ids"


def test_bad_words(validator: Validator, tiny: CheckpointText):
    dog, spaced = tiny.tokenizer.encode("dog"), tiny.tokenizer.encode(" dog")
    assert len(spaced) == 1
    assert dog != spaced
    params = sampling(validator, bad_words=["dog", " dog", "dog"])
    assert params.bad_words == (tuple(dog), tuple(spaced))
    for words in ([""], ["dog", " "], ["x" * 257]):
        assert refused(validator, bad_words=words).param == "bad_words"


def test_something_must_be_left_to_sample(validator: Validator, tiny: CheckpointText):
    padding = tiny.tokenizer.num_real_tokens
    (dog,) = tiny.tokenizer.encode(" dog")
    end = min(tiny.tokenizer.eos_ids)
    assert refused(validator, allowed_token_ids=[padding]).param == "allowed_token_ids"
    assert refused(validator, allowed_token_ids=[dog], bad_words=[" dog"])
    assert refused(validator, allowed_token_ids=[end], min_tokens=1)
    sampling(validator, allowed_token_ids=[end])
    sampling(validator, allowed_token_ids=[end, dog], min_tokens=1)
    sampling(validator, allowed_token_ids=[dog, 5], bad_words=[" dog"])
    everything = list(range(padding))
    assert refused(validator, stop_token_ids=everything, min_tokens=1).param == "bad_words"
    sampling(validator, stop_token_ids=everything)


def test_min_tokens(validator: Validator):
    assert sampling(validator, min_tokens=16).min_tokens == 16
    caught = refused(validator, min_tokens=17)
    assert caught.message == "min_tokens must be at most max_tokens, 16"
    clamped = sampling(validator, prompt=[1] * (WINDOW - 4), min_tokens=10, max_tokens=20)
    assert (clamped.min_tokens, clamped.max_tokens) == (4, 4)
