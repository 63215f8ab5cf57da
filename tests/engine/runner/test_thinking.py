"""The thinking budget, through `Rows` and `sample`."""

import numpy as np
import pytest
import torch

from engine import GrammarSpec
from engine.plan import Admit
from engine.request import SamplingParams
from engine.runner.rows import Rows
from tests.engine.runner.now import sample

REAL = 20
END, CALL = 7, 8
PROMPT = (1, END, 2)  # what the prompt holds does not count


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def sampling_of(budget: int | None, **options: object) -> SamplingParams:
    return SamplingParams(
        max_tokens=99,
        seed=3,
        thinking_budget=budget,
        thinking_end_ids=() if budget is None else (END, CALL),
        **options,  # type: ignore[arg-type]
    )


def run(sampling: SamplingParams, wishes: list[int], known: tuple[int, ...] = ()) -> list[int]:
    """Continue PROMPT and `known`; the model wants `wishes`, one after the other."""
    rows = Rows(num_slots=3, num_real_tokens=REAL)
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


@pytest.mark.parametrize("end", [END, CALL])
@pytest.mark.parametrize("cut", range(6))
def test_thinking_that_ended_by_itself_is_left_alone(end: int, cut: int) -> None:
    wishes = [3, end, 5, 3, 4, 5]
    for budget in (2, 3, 5, 6):
        assert run(sampling_of(budget), wishes, tuple(wishes[:cut])) == wishes
    assert run(sampling_of(1), [3, CALL, 5]) == [3, END, 5]  # spent before that came


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
    rows = Rows(num_slots=3, num_real_tokens=REAL)
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
