"""What the demo learns from: consistent, right, repeatable, and without what is held out."""

import itertools
import json
import random
import re
from typing import Any

import jsonschema
import pytest

from demo.dataset import Renderer, encode, shard_batches
from demo.mixture import LAST, MIXTURE, stage, training_samples
from demo.sample import Sample
from demo.tasks import drills, json_answers, recall, sums, text, tool_calls
from demo.tasks.domains import HELD_OUT_NAMES
from demo.tokenizer import ADDED_TOKENS, train_tokenizer

NUM_SAMPLES = 2000


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [
        sample
        for mixture in (MIXTURE, LAST)
        for sample in itertools.islice(training_samples(3, mixture), NUM_SAMPLES // 2)
    ]


def drawn(task: Any, count: int, seed: int = 5) -> list[Sample]:
    rng = random.Random(seed)
    return [task(rng) for _ in range(count)]


def test_the_same_seed_gives_the_same_samples(samples: list[Sample]):
    assert samples[:300] == list(itertools.islice(training_samples(3), 300))
    assert samples[:300] != list(itertools.islice(training_samples(4), 300))


def test_every_task_is_practised_and_nothing_held_out_is(samples: list[Sample]):
    assert len({sample.task for sample in samples}) >= 17
    assert not any(sample.is_held_out for sample in samples)
    held_out = [sample for task, _ in MIXTURE for sample in drawn(task, 60) if sample.is_held_out]
    assert 20 < len(held_out) < 120, "about one in twenty is kept for the evaluation"


def names(sample: Sample) -> set[str]:
    found: set[str] = set()
    for tool in sample.tools:
        function = tool["function"]
        found |= {function["name"], *function["parameters"]["properties"]}
    return found


def test_names_kept_for_the_evaluation_are_in_no_training_sample(samples: list[Sample]):
    assert not any(names(sample) & HELD_OUT_NAMES for sample in samples)
    rng = random.Random(0)
    kept = [tool_calls.one_call(rng, held_out=True) for _ in range(50)]
    assert sum(bool(names(sample) & HELD_OUT_NAMES) for sample in kept) > 35


def test_a_choice_is_one_of_the_tools_that_are_there():
    for sample in drawn(tool_calls.choose, 200):
        known = re.findall(r"<function=.+>", sample.messages[0]["content"])
        chosen = [m["content"] for m in sample.messages if m["role"] == "assistant"]
        assert len(chosen) >= 4
        assert set(chosen) <= set(known)
        assert [f"<function={name}>" for name in sample.kinds] == known


def test_sums_are_right():
    for sample in drawn(sums.sums, 500):
        a, operator, b = re.fullmatch(r"(\d+)([-+*/])(\d+)", sample.key).groups()  # type: ignore[union-attr]
        right = {
            "+": int(a) + int(b),
            "-": int(a) - int(b),
            "*": int(a) * int(b),
            "/": int(a) // int(b) if int(b) else 0,
        }[operator]
        answer = sample.messages[-1]
        assert re.findall(r"-?\d+", answer["content"].split("=")[-1])[-1] == str(right)
        check_steps(answer["reasoning_content"] or answer["content"])


def check_steps(working: str) -> None:
    steps = re.findall(r"(?<![-+*\d])(\d+(?:[-+*]\d+)+)=(\d+)(?![\d]*\*)", working)
    assert len(steps) == working.count("=") - working.count(" = ") - len(
        re.findall(r"=\d+\*", working)
    )
    for left, result in steps:
        assert eval(left) == int(result), working


def test_facts_are_right_and_spelt_words_are_not_kept():
    for sample in drawn(sums.facts, 300):
        assert sample.messages[-1]["content"].count("=") >= 2
        check_steps(sample.messages[-1]["content"])
    for sample in drawn(drills.spellings, 100):
        for word in sample.messages[-1]["content"].replace("-", "").split("\n"):
            written = next(
                w for w in re.findall(r"\w+", sample.messages[0]["content"]) if w.upper() == word
            )
            assert not Sample("spell", written, []).is_held_out


def test_json_answers_fit_their_schemas():
    for sample in drawn(json_answers.json_answer, 300) + drawn(json_answers.several_answers, 100):
        prompt = "\n".join(m["content"] for m in sample.messages if m["role"] != "assistant")
        schema, _ = json.JSONDecoder().raw_decode(prompt[prompt.index("{") :])
        for message in sample.messages:
            if message["role"] == "assistant":
                answer = json.loads(message["content"])
                jsonschema.validate(answer, {**schema, "additionalProperties": False})
                assert set(answer) == set(schema["properties"])


@pytest.mark.parametrize(
    "task",
    [tool_calls.call, tool_calls.calls_in_turns, tool_calls.several_calls, tool_calls.anything],
)
def test_calls_fit_the_tools_that_are_there(task: Any):
    for sample in drawn(task, 300):
        tools = {tool["function"]["name"]: tool["function"] for tool in sample.tools}
        assert len(tools) == len(sample.tools), "no two tools have the same name"
        calls = [call for m in sample.messages for call in m.get("tool_calls", ())]
        for call in calls:
            function = tools[call["function"]["name"]]
            jsonschema.validate(
                call["function"]["arguments"],
                {**function["parameters"], "additionalProperties": False},
            )
        results = [m for m in sample.messages if m["role"] == "tool"]
        last = next(m for m in reversed(sample.messages) if m.get("tool_calls"))
        assert len(results) in (len(calls), len(calls) - len(last["tool_calls"]))


def test_what_is_asked_for_was_said():
    for sample in (
        drawn(recall.memory, 200) + drawn(recall.interview, 100) + drawn(recall.passkey, 100)
    ):
        answer = sample.messages[-1]["content"]
        if answer == "You have not told me that.":
            continue
        value = sample.key.split(" ", 1)[1] if sample.task == "memory" else sample.key.split()[0]
        assert value in answer
        assert any(value in message["content"] for message in sample.messages[:-1])


def test_words_are_copied_reversed_and_sorted():
    for sample in drawn(text.copying, 50):
        assert sample.messages[-1]["content"] in sample.messages[0]["content"]
    for sample in drawn(text.reversing, 50):
        words = sample.messages[-1]["content"].split()
        assert sample.messages[0]["content"].endswith(" ".join(reversed(words)))
    for sample in drawn(text.sorting, 50):
        items = sample.messages[-1]["content"].split(", ")
        key = int if items[0].isdigit() else str
        assert items == sorted(items, key=key)


def test_only_the_answers_are_the_models(samples: list[Sample]):
    """The pieces make up the rendered conversation; an answer ends its turn and never opens one."""
    renderer = Renderer()
    for sample in samples[:400]:
        pieces = renderer.segments(sample)
        answers = [piece for piece, is_answer in pieces if is_answer]
        assert answers
        assert not pieces[0][1]
        assert all(answer.endswith("<|im_end|>") for answer in answers)
        assert all("<|im_start|>" not in answer for answer in answers)
        last = sample.messages[-1]
        assert last["content"] in answers[-1]
        if sample.thinking:
            assert answers[-1].startswith(f"{last['reasoning_content']}\n</think>\n\n")
        else:
            assert "</think>" not in answers[-1]


def test_the_tokenizer_is_of_the_family_and_repeatable(samples: list[Sample]):
    renderer = Renderer()
    texts = ["".join(piece for piece, _ in renderer.segments(s)) for s in samples[:500]]
    tokenizer = train_tokenizer(texts)
    assert tokenizer.to_str() == train_tokenizer(texts).to_str()
    size = tokenizer.get_vocab_size()
    added = [tokenizer.id_to_token(i) for i in range(size - len(ADDED_TOKENS), size)]
    assert added == list(ADDED_TOKENS)
    for written in ("a  b\n\n\tc 1234", "e\u0301 \u65e5\u672c \U0001f600", "don't WE'LL"):
        ids = tokenizer.encode(written).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assert decoded == written.replace("e\u0301", "\u00e9")


def test_batches_hold_every_sample_once(tmp_path: Any, samples: list[Sample]):
    renderer = Renderer()
    texts = ["".join(piece for piece, _ in renderer.segments(s)) for s in samples[:500]]
    file = tmp_path / "tokenizer.json"
    tokenizer = train_tokenizer(texts)
    tokenizer.save(str(file))
    batches = shard_batches(file, seed=3, shard=0, batch_tokens=4096, max_tokens=512)
    again = shard_batches(file, seed=3, shard=0, batch_tokens=4096, max_tokens=512)
    assert all((a.token_BT == b.token_BT).all() for a, b in zip(batches, again, strict=True))
    assert len(batches) % 2 == 0
    pairs = zip(batches[::2], batches[1::2], strict=True)
    waited = sum(abs(one.token_BT.size - other.token_BT.size) for one, other in pairs)
    assert waited < 0.05 * sum(batch.token_BT.size for batch in batches)
    for batch in batches:
        rows, width = batch.token_BT.shape
        assert width % 64 == 0
        assert (rows - 0.5) * width <= 4096
        assert not (batch.answer_BT & ~batch.text_BT).any()
        assert batch.answer_BT.any(axis=1).all()
    source = training_samples(3 * 1_000_003, stage(0))
    expected = [
        len(item) for item in encode([next(source) for _ in range(4096)], renderer, tokenizer)
    ]
    lengths = sorted(int(n) for batch in batches for n in batch.text_BT.sum(axis=1))
    kept = sorted(n for n in expected if n <= 512)
    dropped = len(kept) - len(lengths)  # a batch of the shortest, where their number is odd
    assert lengths == kept[dropped:]
    assert dropped * 64 <= 4096
