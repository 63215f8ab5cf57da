"""One choice: detokenizing, stop strings, counts, and which tokens the text is made of."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from engine import FinishReason, Request, RequestFailed, SamplingParams, TokenDelta
from server.generate import ChoiceText, TokenStreams
from server.tokenizer import Tokenizer
from server.valid import Generation
from tests.fakes import FakeEngine, fake_logprobs

pytestmark = pytest.mark.anyio


def generation(
    *,
    stop: tuple[str, ...] = (),
    include_stop: bool = False,
    min_tokens: int = 0,
    eos_ids: frozenset[int] = frozenset(),
    skip_special_tokens: bool = True,
    num_logprobs: int | None = None,
) -> Generation:
    sampling = SamplingParams(
        max_tokens=1000, seed=1, min_tokens=min_tokens, num_logprobs=num_logprobs
    )
    return Generation(
        prompt_ids=(1, 2),
        sampling=sampling,
        stop=stop,
        include_stop=include_stop,
        eos_ids=eos_ids,
        skip_special_tokens=skip_special_tokens,
    )


def delta(ids: Sequence[int], finish: FinishReason | None = None) -> TokenDelta:
    logprobs = tuple(fake_logprobs(i, 1) for i in ids)
    return TokenDelta("r", tuple(ids), finish=finish, logprobs=logprobs)


def read(
    choice: ChoiceText, ids: Sequence[int], finish: FinishReason, group: int = 1
) -> tuple[str, list[int]]:
    """Push ids in groups until the choice ends; its text, and the ids its text is made of."""
    text, shown = "", list[int]()
    for i in range(0, max(len(ids), 1), group):
        is_last = i + group >= len(ids)
        for piece in choice.push(delta(ids[i : i + group], finish if is_last else None)):
            text += piece.text
            shown += [token.id for token in piece.tokens]
        if choice.finish is not None:
            break
    return text, shown


@pytest.mark.parametrize("group", [1, 2, 100])
def test_a_stop_string_ends_the_text_and_the_count(tokenizer: Tokenizer, group: int) -> None:
    ids = tokenizer.encode("It is a sunny day in Paris.")
    choice = ChoiceText(generation(stop=("ny da",), num_logprobs=0), tokenizer)
    text, shown = read(choice, ids, FinishReason.LENGTH, group)
    assert text == "It is a sun"
    assert choice.finish is FinishReason.STOP
    assert choice.stop_reason == "ny da"
    enough = [n for n in range(len(ids) + 1) if "ny da" in tokenizer.decode(ids[:n])]
    assert choice.num_tokens == enough[0]
    joined = tokenizer.decode(shown)
    assert joined.startswith(text)
    assert len(tokenizer.decode(shown[:-1])) < len(text)


def test_the_stop_string_is_kept_when_asked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("It is a sunny day.")
    choice = ChoiceText(generation(stop=("sunny",), include_stop=True), tokenizer)
    assert read(choice, ids, FinishReason.LENGTH)[0] == "It is a sunny"


def test_a_prefix_of_a_stop_string_is_released_at_the_end(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("Say sto"), 300]
    choice = ChoiceText(generation(stop=("stop",), eos_ids=frozenset({300})), tokenizer)
    assert read(choice, ids, FinishReason.STOP)[0] == "Say sto"
    assert choice.stop_reason is None


@pytest.mark.parametrize("min_tokens", range(1, 7))
def test_a_stop_string_counts_where_it_is_complete(tokenizer: Tokenizer, min_tokens: int) -> None:
    """The fourth token completes one, and the last another that begins in it."""
    choice = ChoiceText(generation(stop=("bxy", "ybz"), min_tokens=min_tokens), tokenizer)
    ids = [token_id for char in "abxybzc" for token_id in tokenizer.encode(char)]
    assert len(ids) == 7
    text, _ = read(choice, ids, FinishReason.LENGTH)
    assert (text, choice.stop_reason) == (("a", "bxy") if min_tokens <= 4 else ("abx", "ybz"))


def test_min_tokens_holds_for_stop_strings(tokenizer: Tokenizer) -> None:
    one = tokenizer.encode("x")
    assert len(one) == 1
    choice = ChoiceText(generation(stop=("x",), min_tokens=4), tokenizer)
    text, _ = read(choice, one * 10, FinishReason.LENGTH)
    assert choice.num_tokens == 4
    assert text == "xxx"
    assert choice.stop_reason == "x"


def test_a_stop_string_in_the_last_token_wins_over_length(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(generation(stop=("y",)), tokenizer)
    ids = tokenizer.encode("xy")
    assert read(choice, ids, FinishReason.LENGTH)[0] == "x"
    assert choice.finish is FinishReason.STOP


@pytest.mark.parametrize(
    ("include_stop", "skip", "shown"),
    [(False, True, ""), (True, True, ""), (True, False, "<|im_end|>"), (False, False, "")],
)
def test_the_final_eos_is_shown_only_on_request(
    tokenizer: Tokenizer, include_stop: bool, skip: bool, shown: str
) -> None:
    eos = tokenizer.id_of("<|im_end|>")
    assert eos is not None
    choice = ChoiceText(
        generation(
            include_stop=include_stop,
            skip_special_tokens=skip,
            eos_ids=frozenset({eos}),
            num_logprobs=0,
        ),
        tokenizer,
    )
    ids = [*tokenizer.encode("Hi"), eos]
    text, tokens = read(choice, ids, FinishReason.STOP)
    assert text == "Hi" + shown
    assert tokenizer.decode(tokens) == text
    assert choice.num_tokens == len(ids)
    assert choice.stop_reason is None


def test_a_stop_token_of_the_caller_is_the_stop_reason(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hi!")
    choice = ChoiceText(generation(), tokenizer)
    assert read(choice, ids, FinishReason.STOP)[0] == "Hi"
    assert choice.stop_reason == ids[-1]
    choice = ChoiceText(generation(include_stop=True), tokenizer)
    assert read(choice, ids, FinishReason.STOP)[0] == "Hi!"


def test_special_tokens_on_the_way_follow_skip_special_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b")
    hidden = ChoiceText(generation(num_logprobs=0), tokenizer)
    text, shown = read(hidden, ids, FinishReason.LENGTH)
    assert text == "ab" == tokenizer.decode(shown)
    assert hidden.num_tokens == len(ids)
    open_ = ChoiceText(generation(num_logprobs=0, skip_special_tokens=False), tokenizer)
    text, shown = read(open_, ids, FinishReason.LENGTH)
    assert text == "a<|im_end|>b" == tokenizer.decode(shown)


def test_characters_leave_whole_and_a_cut_one_is_replaced(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    choice = ChoiceText(generation(num_logprobs=0), tokenizer)
    texts = [piece.text for i in ids for piece in choice.push(delta([i]))]
    assert texts == [""] * (len(ids) - 1) + ["😀"]
    choice = ChoiceText(generation(num_logprobs=0), tokenizer)
    text, shown = read(choice, ids[:-1], FinishReason.LENGTH)
    assert text == "\ufffd"
    assert shown == ids[:-1]


class Forgetful(FakeEngine):
    """Ends its streams without a finish."""

    async def submit(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        yield TokenDelta(request.id, (1,))


@pytest.mark.parametrize("count", [1, 2])
async def test_a_stream_without_a_finish_is_a_fault(count: int) -> None:
    requests = [generation().request(f"r{i}", i) for i in range(count)]
    async with TokenStreams(Forgetful(), requests) as streams:
        with pytest.raises(RequestFailed):
            async for _ in streams.deltas():
                pass


async def test_stopping_one_stream_cancels_it_and_leaves_the_others() -> None:
    engine = FakeEngine()
    requests = [generation().request(f"r{i}", i) for i in range(2)]
    engine.will((1,), finish=None)
    go_on = asyncio.Event()
    engine.will((5,), go_on, (6,))
    seen: list[tuple[int, tuple[int, ...]]] = []
    async with TokenStreams(engine, requests) as streams:
        async for index, found in streams.deltas():
            seen.append((index, found.token_ids))
            if index == 0:
                streams.stop(0)
                go_on.set()
    assert sorted(seen) == [(0, (1,)), (1, (5,)), (1, (6,))]
    assert engine.cancelled == ["r0"]
    assert engine.num_active == 0
