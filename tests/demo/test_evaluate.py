"""The examiner: right answers pass, wrong ones do not, and questions are held out."""

import copy
import itertools
import json

import pytest

from demo import evaluate
from demo.evaluate import Exam, exams, questions
from demo.mixture import training_samples
from demo.sample import Message, Sample
from demo.tasks.domains import HELD_OUT_NAMES


def words(text: str) -> int:
    return len(text.split())


EXAMS = exams(words)


def names(sample: Sample) -> set[str]:
    """Of the tools and their parameters."""
    functions = [tool["function"] for tool in sample.tools]
    return {name for f in functions for name in (f["name"], *f["parameters"]["properties"])}


def as_served(sample: Sample) -> Message:
    """The right answer in the form in which the API gives it."""
    message = copy.deepcopy(sample.messages[-1])
    for call in message.get("tool_calls", ()):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return message


@pytest.mark.parametrize("exam", EXAMS, ids=lambda exam: exam.name)
def test_the_right_answer_passes_and_another_does_not(exam: Exam):
    for sample in questions(exam, 20):
        assert exam.is_right(sample, as_served(sample))
        wrong = "I do not know that."
        assert not exam.is_right(sample, {"role": "assistant", "content": wrong})
        assert not exam.is_right(sample, {"role": "assistant", "content": None})


def test_a_wrong_value_a_wrong_type_and_a_second_call_are_wrong():
    exam = next(exam for exam in EXAMS if exam.is_right is evaluate.same_calls)
    sample = questions(exam, 1)[0]
    for change in ("value", "second", "name", "broken"):
        answer = as_served(sample)
        function = answer["tool_calls"][0]["function"]
        if change == "value":
            function["arguments"] = json.dumps({"x": 1})
        elif change == "second":
            answer["tool_calls"] *= 2
        elif change == "name":
            function["name"] += "_"
        else:
            function["arguments"] = function["arguments"][:-1]
        assert not exam.is_right(sample, answer), change


@pytest.mark.parametrize("exam", EXAMS, ids=lambda exam: exam.name)
def test_questions_are_the_same_every_time_and_never_trained_on(exam: Exam):
    asked = questions(exam, 15)
    assert asked == questions(exam, 15)
    assert asked != questions(exam, 15, seed=1)
    if exam.held_out_by_key:
        assert all(sample.is_held_out for sample in asked)


def test_tools_of_the_exam_have_unseen_names():
    source = training_samples(1)
    trained: set[str] = set()
    for sample in itertools.islice(source, 4000):
        trained |= names(sample)
    unseen = [name for sample in questions(EXAMS[0], 200) for name in names(sample)]
    assert not trained & set(unseen)
    assert sum(name in HELD_OUT_NAMES for name in unseen) > len(unseen) / 4


def test_passkeys_are_hidden_at_the_asked_length():
    exam = next(exam for exam in EXAMS if "2,048" in exam.name)
    lengths = [words(sample.messages[0]["content"]) for sample in questions(exam, 10)]
    assert all(2030 <= length <= 2070 for length in lengths)
