"""What a request asks of its tokens, row by row, through `Rows` and `sample`."""

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.plan import Admit
from engine.request import SamplingParams, TokenLogprobs
from engine.runner.rows import Rows
from engine.runner.sampler import IMPOSSIBLE
from tests.engine.runner.now import sample, score

VOCAB, REAL = 64, 50
PROMPT = (3, 9, 3, 12)


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def make_rows(num_slots: int = 8) -> Rows:
    return Rows(num_slots=num_slots, num_real_tokens=REAL)


def noise(rows: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def greedy(**options: object) -> SamplingParams:
    return SamplingParams(max_tokens=99, seed=0, temperature=0, **options)  # type: ignore[arg-type]


def draw_one(
    sampling: SamplingParams,
    logits_V: torch.Tensor,
    ids: tuple[int, ...] = PROMPT,
    num_prompt: int = len(PROMPT),
) -> int:
    rows = make_rows()
    rows.admit(Admit(1, num_prompt, ids, sampling))
    (token,), _ = sample(rows, logits_V[None].clone(), [1], [len(ids)])
    return token


def generate(
    rows: Rows, slot: int, ids: list[int], num_tokens: int, logits_of: Callable[[int], torch.Tensor]
) -> list[int]:
    """Continue one sequence alone; `logits_of(position)` stands for the model."""
    output: list[int] = []
    for position in range(len(ids), len(ids) + num_tokens):
        (token,), _ = sample(rows, logits_of(position)[None].clone(), [slot], [position])
        output.append(token)
    return output


KINDS = (
    greedy(),
    SamplingParams(max_tokens=9, seed=-5, top_k=7, top_p=0.9),
    SamplingParams(max_tokens=9, seed=1 << 62, top_p=0.8, min_p=0.01),
    SamplingParams(max_tokens=9, seed=4, temperature=1.7),
    SamplingParams(max_tokens=9, seed=5, min_p=0.2, temperature=0.4),
    SamplingParams(max_tokens=9, seed=6, repetition_penalty=1.4, num_logprobs=3),
    SamplingParams(max_tokens=9, seed=7, presence_penalty=0.5, frequency_penalty=-0.5, top_k=40),
    greedy(bad_words=((3,), (9, 4)), logit_bias=((8, 3.0),), num_logprobs=0),
    SamplingParams(max_tokens=9, seed=8, allowed_token_ids=(1, 2, 30, 44), min_tokens=3),
    SamplingParams(max_tokens=9, seed=9, xtc_probability=0.5, xtc_threshold=0.02),
    SamplingParams(max_tokens=9, seed=10, xtc_probability=1.0, xtc_threshold=0.05, top_k=9),
    SamplingParams(max_tokens=9, seed=11, xtc_probability=0.7, top_p=0.9, temperature=0.8),
    greedy(
        dry_multiplier=5.0,
        dry_allowed_length=0,
        dry_last_n=6,
        dry_breaker_ids=(9,),
        dry_breakers=((3, 12),),
    ),
    SamplingParams(max_tokens=9, seed=12, temperature=0.3, dry_multiplier=2, dry_allowed_length=1),
    SamplingParams(max_tokens=9, seed=13, thinking_budget=3, thinking_end_id=17),
)


def test_a_row_does_not_depend_on_the_batch_or_on_its_slot() -> None:
    n, steps = len(KINDS), 6
    crowd = make_rows(n + 1)
    order = list(range(n))
    for i, sampling in enumerate(KINDS):
        crowd.admit(Admit(i + 1, len(PROMPT), PROMPT, sampling))
    together: list[list[object]] = [[] for _ in KINDS]
    rng = random.Random(0)
    for step in range(steps):
        logits_RV = noise(n, seed=step)
        rng.shuffle(order)
        slots = [i + 1 for i in order]
        ids, logprobs = sample(crowd, logits_RV[order], slots, [len(PROMPT) + step] * n)
        for i, token, entry in zip(order, ids, logprobs, strict=True):
            together[i].append((token, entry))
    for i, sampling in enumerate(KINDS):
        alone = make_rows(3)
        alone.admit(Admit(2, len(PROMPT), PROMPT, sampling))
        for step in range(steps):
            logits_RV = noise(n, seed=step)[i : i + 1]
            (token,), (entry,) = sample(alone, logits_RV, [2], [len(PROMPT) + step])
            assert (token, entry) == together[i][step]


@pytest.mark.parametrize("sampling", KINDS)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_resumed_sequence_goes_on_as_if_it_had_never_left(
    sampling: SamplingParams, cut: int
) -> None:
    def logits_of(position: int) -> torch.Tensor:
        return noise(1, seed=position)[0]

    rows = make_rows()
    rows.admit(Admit(1, len(PROMPT), PROMPT, sampling))
    whole = generate(rows, 1, list(PROMPT), 8, logits_of)
    rows.admit(Admit(1, 2, (5, 6), KINDS[5]))  # somebody else's turn
    known = [*PROMPT, *whole[:cut]]
    rows.admit(Admit(4, len(PROMPT), tuple(known), sampling))
    assert generate(rows, 4, known, 8 - cut, logits_of) == whole[cut:]


def test_seeds_differ_and_repeat() -> None:
    def text(seed: int) -> list[int]:
        rows = make_rows()
        rows.admit(Admit(1, len(PROMPT), PROMPT, SamplingParams(max_tokens=30, seed=seed)))
        return generate(rows, 1, list(PROMPT), 30, lambda position: noise(1, position)[0])

    texts = [text(seed) for seed in (0, 1, -1, 1 << 32, -(1 << 63), (1 << 63) - 1)]
    assert len({tuple(t) for t in texts}) == len(texts)
    assert text(1 << 32) == texts[3]


def test_padding_ids_are_never_sampled() -> None:
    logits_RV = torch.full((5, VOCAB), -9.0)
    logits_RV[:, REAL:] = 50.0
    rows = make_rows()
    for slot, sampling in enumerate(KINDS[:5], start=1):
        rows.admit(Admit(slot, len(PROMPT), PROMPT, sampling))
    ids, _ = sample(rows, logits_RV, [1, 2, 3, 4, 5], [4] * 5)
    assert max(ids) < REAL
    wishes = greedy(allowed_token_ids=(60, 7), logit_bias=((61, 100.0), (62, 5.0)))
    assert draw_one(wishes, noise(1)[0]) == 7


@given(
    st.integers(0, 1000),
    st.sampled_from([1.0, 0.7, 1.3]),
    st.sampled_from([0.0, 1.5, -0.8]),
    st.sampled_from([0.0, 0.7, -0.4]),
)
@settings(deadline=None, max_examples=40)
def test_penalties_follow_the_output_as_it_grows(
    seed: int, repetition: float, presence: float, frequency: float
) -> None:
    sampling = greedy(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    ids = [3, 9, 3, 12, 60, 9, 1]  # a prompt of five, one id of it padding, and two outputs
    output = ids[5:]
    rows = make_rows()
    rows.admit(Admit(1, 5, tuple(ids), sampling))
    for step in range(6):
        logits_V = noise(1, seed=seed + step, spread=0.6)[0]
        expected_V = logits_V[:REAL].double()
        for v in range(REAL):
            x = expected_V[v].item()
            if v in ids:
                x = x / repetition if x > 0 else x * repetition
            n = output.count(v)
            expected_V[v] = x - presence * (n > 0) - frequency * n
        (token,), _ = sample(rows, logits_V[None].clone(), [1], [len(ids)])
        assert expected_V[token] >= expected_V.max() - 1e-5
        ids.append(token)
        output.append(token)


def test_tallies_are_reused_and_start_clean() -> None:
    rows = make_rows(6)
    sampling = greedy(frequency_penalty=2.0)
    for turn in range(5):
        for slot in range(1, 6):
            rows.admit(Admit(slot, len(PROMPT), PROMPT, sampling))
        logits_RV = torch.zeros(5, VOCAB)
        logits_RV[:, 7], logits_RV[:, 8], logits_RV[:, 9] = 3.0, 2.5, 1.5
        for expected in (7, 8, 9, 7):  # 3.0; 2.5 over 1.0; 1.5 over 1.0 and 0.5; 1.0 over 0.5
            ids, _ = sample(rows, logits_RV.clone(), [1, 2, 3, 4, 5], [4 + turn] * 5)
            assert ids == [expected] * 5
    assert rows.num_tallies == 8  # for five
    rows.admit(Admit(1, len(PROMPT), PROMPT, greedy()))
    assert sample(rows, logits_RV[:1].clone(), [1], [4])[0] == [7]


def test_bad_words_are_never_completed() -> None:
    logits_V = torch.zeros(VOCAB)
    logits_V[5], logits_V[6], logits_V[7] = 9.0, 8.0, 7.0
    sampling = greedy(bad_words=((20,), (5, 5), (3, 12, 5), (5, 6, 5, 6)))
    rows = make_rows()
    rows.admit(Admit(1, len(PROMPT), PROMPT, sampling))
    # 5 would complete 3 12 5 with the prompt's end; then 5 5; then 5 6 5 6
    text = generate(rows, 1, list(PROMPT), 7, lambda _: logits_V)
    assert text == [6, 5, 6, 5, 7, 5, 6]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_bad_words_against_a_naive_search(words: list[list[int]], seed: int) -> None:
    bad_words = tuple(map(tuple, words))
    prompt = (0, 1)
    rows = make_rows()
    rows.admit(Admit(1, 2, prompt, greedy(bad_words=bad_words)))
    ids = list(prompt)
    for step in range(8):
        logits_V = noise(1, seed=seed * 100 + step)[0]
        logits_V[4:] -= 50  # few tokens, so that words come about
        banned = {w[-1] for w in bad_words if tuple(ids[len(ids) - len(w) + 1 :]) == w[:-1]}
        allowed = [v for v in range(REAL) if v not in banned]
        (token,), _ = sample(rows, logits_V[None].clone(), [1], [len(ids)])
        assert token == max(allowed, key=lambda v: logits_V[v].item())
        ids.append(token)


def test_stop_ids_wait_for_min_tokens() -> None:
    logits_V = torch.zeros(VOCAB)
    logits_V[30], logits_V[31], logits_V[32] = 9.0, 8.0, 7.0
    sampling = greedy(min_tokens=2, stop_token_ids=(30, 31, 63))
    rows = make_rows()
    rows.admit(Admit(1, len(PROMPT), PROMPT, sampling))
    assert generate(rows, 1, list(PROMPT), 4, lambda _: logits_V) == [32, 32, 30, 30]
    resumed = make_rows()
    resumed.admit(Admit(1, len(PROMPT), (*PROMPT, 32), sampling))
    assert generate(resumed, 1, [*PROMPT, 32], 2, lambda _: logits_V) == [32, 30]


def test_allowed_ids_and_bias() -> None:
    logits_V = noise(1)[0]
    order = sorted(range(REAL), key=lambda v: -logits_V[v].item())
    allowed = tuple(sorted(order[10:20]))
    assert draw_one(greedy(allowed_token_ids=allowed), logits_V) == order[10]
    gap = (logits_V[order[0]] - logits_V[order[1]]).item()
    assert draw_one(greedy(logit_bias=((order[1], gap + 0.01),)), logits_V) == order[1]
    assert draw_one(greedy(logit_bias=((order[1], gap - 0.01),)), logits_V) == order[0]
    assert draw_one(greedy(logit_bias=((order[0], -gap / 2),) * 3), logits_V) == order[1]


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.0, 50.0])
def test_a_bias_of_100_forces_and_of_minus_100_bans(temperature: float) -> None:
    logits_V = torch.zeros(VOCAB)
    logits_V[5], logits_V[6], logits_V[7] = 900.0, -900.0, -900.0
    for seed in range(20):
        sampling = SamplingParams(
            max_tokens=1,
            seed=seed,
            temperature=temperature,
            logit_bias=((6, 100.0), (7, 100.0)),
        )
        assert draw_one(sampling, logits_V) in (6, 7)
    everything_but_7 = tuple((v, -100.0) for v in range(REAL) if v != 7)
    sampling = SamplingParams(
        max_tokens=1, seed=1, temperature=temperature, logit_bias=everything_but_7
    )
    assert draw_one(sampling, logits_V) == 7


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 1.0}])
def test_contradictions_draw_what_the_stronger_side_wants(
    temperature: float, filters: dict[str, float]
) -> None:
    def draw(**options: object) -> int:
        sampling = SamplingParams(
            max_tokens=9,
            seed=3,
            temperature=temperature,
            **(filters | options),  # type: ignore[arg-type]
        )
        return draw_one(sampling, logits_V)

    logits_V = noise(1)[0]
    stop = {"stop_token_ids": (4,), "min_tokens": 5}
    assert draw(allowed_token_ids=(4,), **stop) == 4  # nothing else is allowed
    assert draw(allowed_token_ids=(4,), logit_bias=((4, -100.0),)) == 4
    assert draw(allowed_token_ids=(4,), bad_words=((4,),)) == 4
    assert draw(allowed_token_ids=(4, 8), bad_words=((4,),)) == 8
    assert draw(allowed_token_ids=(4, 8), logit_bias=((9, 100.0),)) in (4, 8)
    assert draw(logit_bias=((4, 100.0),), **stop) != 4  # `min_tokens` holds against a bias


def test_extreme_penalties_keep_a_token() -> None:
    for repetition in (1e-40, 1e-9, 1e9, 1e40):
        for temperature in (0.0, 1e-60, 1e-6, 1.0, 1e60):
            sampling = SamplingParams(
                max_tokens=9,
                seed=3,
                temperature=temperature,
                repetition_penalty=repetition,
                presence_penalty=2.0,
                frequency_penalty=-2.0,
                allowed_token_ids=(3, 12, 20, 30),
            )
            for seed in range(5):
                assert draw_one(sampling, noise(1, seed)[0] * 10) in (3, 12, 20, 30)


def check_entry(entry: TokenLogprobs | None, raw_V: torch.Tensor, token: int, k: int) -> None:
    assert entry is not None
    order = sorted(range(REAL), key=lambda v: (-raw_V[v].item(), v))
    assert entry.logprob == pytest.approx(raw_V[token].item(), abs=1e-5)
    assert entry.rank == order.index(token) + 1
    assert [i for i, _ in entry.top] == order[:k]
    assert [x for _, x in entry.top] == pytest.approx([raw_V[v].item() for v in order[:k]])


def test_logprobs_are_of_the_raw_distribution() -> None:
    options = {"logit_bias": ((2, 100.0),), "repetition_penalty": 2.0}
    wishes = [None, 0, 3, 20]
    rows = make_rows()
    for slot, num_logprobs in enumerate(wishes, start=1):
        rows.admit(Admit(slot, 4, PROMPT, greedy(num_logprobs=num_logprobs, **options)))
    logits_RV = noise(4)
    raw_RV = logits_RV[:, :REAL].log_softmax(-1)
    ids, entries = sample(rows, logits_RV.clone(), [1, 2, 3, 4], [4] * 4)
    assert ids == [2] * 4
    assert entries[0] is None
    for r in (1, 2, 3):
        check_entry(entries[r], raw_RV[r], 2, wishes[r] or 0)


def test_logprobs_sum_to_one_and_rank_their_tops() -> None:
    rows = make_rows()
    logits_RV = noise(1, seed=4).bfloat16().float()
    logits_RV[:, 10:20] = 1.0  # ties
    token_R = torch.arange(REAL)
    entries = score(rows, logits_RV.expand(REAL, VOCAB).clone(), token_R, [REAL] * REAL)
    assert sum(torch.tensor(e.logprob).exp().item() for e in entries) == pytest.approx(1, abs=1e-5)
    assert sorted(e.rank for e in entries) == list(range(1, REAL + 1))
    for token, entry in enumerate(entries):
        assert entry.top[entry.rank - 1] == (token, entry.logprob)
        assert list(entry.top) == sorted(entry.top, key=lambda pair: (-pair[1], pair[0]))


def test_dry_breaks_a_loop() -> None:
    """The longer the repetition, the dearer its next token, until another one comes in between."""
    logits_V = torch.zeros(VOCAB)

    def logits_of(position: int) -> torch.Tensor:
        looping_V = logits_V.clone()
        looping_V[5 + position % 3] = 9.0
        looping_V[8] = 5.0
        return looping_V

    def text(**options: object) -> list[int]:
        rows = make_rows()
        rows.admit(Admit(1, len(PROMPT), PROMPT, greedy(**options)))
        return generate(rows, 1, list(PROMPT), 12, logits_of)

    loop = [5 + position % 3 for position in range(4, 16)]
    assert text() == text(dry_multiplier=0.0, dry_base=4.0) == text(dry_multiplier=9, dry_last_n=0)
    assert text() == loop
    # The sixth token would cost 2, the seventh 2 * 1.75, the eighth 2 * 1.75 ** 2: more than the 4
    # that 8 lies behind.
    assert text(dry_multiplier=2.0) == [*loop[:7], 8, *loop[8:]]
    assert text(dry_multiplier=2.0, dry_breaker_ids=(5,)) == loop
    assert text(dry_multiplier=2.0, dry_breakers=((6, 7),)) == loop


def test_xtc_comes_true_as_often_as_asked_and_leaves_greedy_alone() -> None:
    logits_V = torch.full((VOCAB,), -50.0)
    logits_V[:3] = torch.tensor([0.5, 0.3, 0.2]).log()

    def texts(**options: object) -> list[int]:
        sampling = SamplingParams(max_tokens=9, seed=1, **options)  # type: ignore[arg-type]
        rows = make_rows()
        rows.admit(Admit(1, len(PROMPT), PROMPT, sampling))
        return generate(rows, 1, list(PROMPT), 600, lambda _: logits_V)

    assert set(texts(xtc_probability=1.0)) == {2}
    assert set(texts(xtc_probability=1.0, xtc_threshold=0.25)) == {1, 2}
    assert texts(xtc_probability=1.0, xtc_threshold=0.4) == texts()
    assert texts(xtc_probability=1.0, xtc_threshold=0.6) == texts()
    half = texts(xtc_probability=0.5)
    assert 2 < half.count(0) < 220  # of 300 at half the chance: about 150
    assert set(texts(xtc_probability=1.0, temperature=0)) == {0}
    # Where it does not come true, the draw is that of a request without.
    assert all(a == b or a == 2 for a, b in zip(half, texts(), strict=True))


def test_scores_of_padding_ids_are_finite() -> None:
    (entry,) = score(make_rows(), noise(1), torch.tensor([REAL + 3]), [2])
    assert entry.logprob == IMPOSSIBLE
    assert entry.rank > REAL
    assert all(i < REAL for i, _ in entry.top)
