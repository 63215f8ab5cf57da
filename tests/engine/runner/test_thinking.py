"""The thinking budget, through `Rows` and `sample`."""

import msgspec
import numpy as np
import pytest
import torch

from engine import GrammarSpec
from engine.plan import Admit
from engine.request import SamplingParams
from engine.runner.device import CpuDevice
from engine.runner.rows import Rows
from engine.runner.thinking import ThinkingEnds
from server.parse import OutputParser
from tests.engine.runner.now import sample

REAL = 20
TEXTS = (
    "a b c d e f g </think> <tool_call> \n < / think > func tion= function= =x tion=> x<tool_call>"
).replace("\n", "|")
BYTES = [text.replace("|", "\n").encode() for text in TEXTS.split(" ")]
END, CALL, NEWLINE, LESS, SLASH, THINK, MORE = 7, 8, 9, 10, 11, 12, 13
FUNC, TION, FUNCTION, NAME, NO_NAME = 14, 15, 16, 17, 18
PROMPT = (1, END, 2)  # what the prompt holds does not count
TAGS = ("<tool_call>", "<function=")


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def sampling_of(budget: int | None, **options: object) -> SamplingParams:
    return SamplingParams(
        max_tokens=99,
        seed=3,
        thinking_budget=budget,
        thinking_end_id=-1 if budget is None else END,
        thinking_call_tags=TAGS,
        **options,  # type: ignore[arg-type]
    )


def run(sampling: SamplingParams, wishes: list[int], known: tuple[int, ...] = ()) -> list[int]:
    """Continue PROMPT and `known`; the model wants `wishes`, one after the other."""
    rows = Rows(num_slots=3, num_real_tokens=REAL, token_bytes=BYTES)
    ids = PROMPT + known
    rows.admit(Admit(2, len(PROMPT), ids, sampling))
    output = list(known)
    for position in range(len(ids), len(PROMPT) + len(wishes)):
        logits_RV = torch.full((1, REAL), -30.0)
        logits_RV[0, wishes[position - len(PROMPT)]] = 30.0
        (token,), _ = sample(rows, logits_RV, [2], [position])
        output.append(token)
    return output


@pytest.mark.parametrize("budget", range(7))
@pytest.mark.parametrize("cut", range(6))
def test_the_end_comes_after_the_budget_preempted_or_not(budget: int, cut: int) -> None:
    wishes = [3, 4, 5, 3, 4, 5]
    expected = [END if i == budget else wish for i, wish in enumerate(wishes)]
    assert run(sampling_of(budget), wishes) == expected
    assert run(sampling_of(budget), wishes, tuple(expected[:cut])) == expected


@pytest.mark.parametrize(
    "end",
    [
        (END,),
        (LESS, SLASH, THINK, MORE),  # the parser reads the tag as well
        (CALL, NEWLINE, LESS, FUNCTION, 3),
        (CALL, LESS, FUNC, TION, 4),
        (CALL, LESS, FUNC, TION, NAME),
        (CALL, NEWLINE, NEWLINE, LESS, FUNCTION, 5),
        (CALL, NEWLINE, CALL, NEWLINE, LESS, FUNCTION, 3),
        (19, LESS, FUNCTION, 3),
    ],
)
@pytest.mark.parametrize("cut", range(9))
def test_thinking_that_ended_by_itself_is_left_alone(end: tuple[int, ...], cut: int) -> None:
    wishes = [3, *end, 5, 3, 4, 5]
    for budget in range(len(end) + 1, len(wishes) + 1):
        assert run(sampling_of(budget), wishes, tuple(wishes[:cut])) == wishes


@pytest.mark.parametrize("budget", [0, 1])
def test_a_call_that_comes_too_late_is_cut_off(budget: int) -> None:
    wishes = [3, CALL, NEWLINE, LESS, FUNCTION, 3]
    expected = [END if i == budget else wish for i, wish in enumerate(wishes)]
    assert run(sampling_of(budget), wishes) == expected


@pytest.mark.parametrize("budget", range(2, 6))
def test_a_call_that_has_begun_is_waited_for(budget: int) -> None:
    wishes = [3, CALL, NEWLINE, LESS, FUNCTION, 3, 4, 5]
    assert run(sampling_of(budget), wishes) == wishes


@pytest.mark.parametrize(
    "text",
    [
        (CALL, 3),  # a tag that opens nothing is text
        (CALL, NEWLINE, 3),
        (CALL, LESS, FUNC, 3),
        (CALL, LESS, FUNC, TION, MORE),
        (CALL, LESS, FUNC, NO_NAME),
        (CALL, LESS, FUNCTION, NEWLINE),
        (LESS, FUNCTION, NAME),
        (CALL, LESS, SLASH, 3),
        (LESS, LESS, SLASH, THINK, 3),
    ],
)
def test_text_that_ends_nothing_leaves_the_budget_on(text: tuple[int, ...]) -> None:
    wishes = [*text, 4, 5, 3]
    budget = len(text) + 1
    expected = [END if i == budget else wish for i, wish in enumerate(wishes)]
    assert run(sampling_of(budget), wishes) == expected
    for cut in range(len(wishes)):
        assert run(sampling_of(budget), wishes, tuple(expected[:cut])) == expected


def test_a_tag_that_opens_nothing_is_waited_for_no_longer_than_a_call_would_take() -> None:
    assert run(sampling_of(1), [CALL, 3, 4, 5]) == [CALL, 3, END, 5]
    assert run(sampling_of(1), [CALL, NEWLINE, 4, 5]) == [CALL, NEWLINE, 4, END]
    assert run(sampling_of(1), [CALL, NEWLINE, NEWLINE, NEWLINE]) == [CALL, NEWLINE, NEWLINE, END]
    assert run(sampling_of(1), [CALL, CALL, CALL, CALL]) == [CALL, CALL, END, CALL]


def test_without_tools_a_call_is_text() -> None:
    sampling = msgspec.structs.replace(sampling_of(5), thinking_call_tags=None)
    wishes = [CALL, NEWLINE, LESS, FUNCTION, 3, 4, 5]
    assert run(sampling, wishes) == [*wishes[:5], END, 5]


def test_the_automaton_agrees_with_the_parser_of_answers() -> None:
    """Random tokens: thinking has ended when the parser says so, of a text that goes on."""
    weather = {"type": "function", "function": {"name": "x", "parameters": {"type": "object"}}}
    ends = ThinkingEnds(BYTES, END, TAGS, num_real_tokens=REAL, device=CpuDevice())
    rng = np.random.default_rng(5)
    num_ended = 0
    for _ in range(5000):
        ids = rng.choice((5, *range(END, REAL)), size=rng.integers(0, 8)).tolist()
        if rng.random() < 0.7:
            ids += [CALL, *[NEWLINE] * rng.integers(0, 3), LESS, FUNCTION]
        ids += rng.choice((5, *range(NEWLINE, REAL)), size=rng.integers(0, 4)).tolist()
        parser = OutputParser(thinking=True, tools=[weather])
        parser.feed("".join(BYTES[i].decode() for i in ids))
        has_ended = ends.has_ended(ends.state_after(ids))
        assert parser.in_reasoning is not has_ended, [BYTES[i] for i in ids]
        num_ended += has_ended
    assert 1000 < num_ended < 4000


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"allowed_token_ids": (3, 4, 5)},
        {"logit_bias": ((END, -100.0), (4, 100.0))},
        {"bad_words": ((END,),)},
        {"stop_token_ids": (END,), "min_tokens": 9},
        {"top_k": 2},
        {"top_p": 0.3, "xtc_probability": 1.0, "dry_multiplier": 1.0},
        {"repetition_penalty": 2.0},
    ],
)
def test_it_beats_every_other_wish(options: dict[str, object]) -> None:
    assert run(sampling_of(2, **options), [3, 4, 5])[2] == END


def test_rows_without_a_budget_go_on_beside_it() -> None:
    rows = Rows(num_slots=4, num_real_tokens=REAL)
    rows.admit(Admit(1, len(PROMPT), PROMPT, sampling_of(0, temperature=0.0)))
    rows.admit(Admit(2, len(PROMPT), PROMPT, sampling_of(None, temperature=0.0)))
    logits_RV = torch.zeros(2, REAL)
    logits_RV[:, 5] = 9.0
    assert sample(rows, logits_RV, [1, 2], [len(PROMPT)] * 2)[0] == [END, 5]


@pytest.mark.parametrize("cut", range(7))
def test_it_waits_for_the_grammar(cut: int) -> None:
    """That allows the end at two positions only: before the budget is spent, and after."""
    rows = Rows(num_slots=3, num_real_tokens=REAL, token_bytes=BYTES)
    sampling = sampling_of(2, grammar=GrammarSpec(grammar="start: /.*/"), temperature=0.0)
    wishes = [3, 4, 5, 3, 4, 5, 3]
    expected = [3, 4, 5, 3, END, 5, 3]
    ids = (*PROMPT, *expected[:cut])
    rows.admit(Admit(2, len(PROMPT), ids, sampling))
    for i in range(cut, len(wishes)):
        logits_RV = torch.full((1, REAL), -30.0)
        logits_RV[0, wishes[i]] = 30.0
        allowed = set(range(REAL)) - {END} if i not in (1, 4) else set(range(REAL))
        mask = np.array([sum(1 << token for token in allowed)], dtype=np.int32)
        (token,), _ = sample(rows, logits_RV, [2], [len(PROMPT) + i], {0: mask})
        assert token == expected[i]
