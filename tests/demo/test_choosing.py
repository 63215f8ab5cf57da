"""The lesson in choosing: its places are right, and a head that has learnt it loses least."""

import random
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer

from demo.choosing import NO_CHOICE, NO_DOMAIN, Choices, choosing_loss, domain_codes
from demo.dataset import Renderer, encode
from demo.network import Attention
from demo.sample import Sample
from demo.settings import model_config
from demo.tasks import tool_calls
from demo.tasks.domains import DOMAINS
from server.demo_model import DIRECTORY

TOKENIZER = Tokenizer.from_file(str(DIRECTORY / "tokenizer.json"))
TEXT = model_config(TOKENIZER)["text_config"]
ROTARY = 16


def drawn(count: int) -> list[Sample]:
    rng = random.Random(2)
    tasks = (tool_calls.choose, tool_calls.call, tool_calls.choices, tool_calls.anything)
    return [rng.choice(tasks)(rng) for _ in range(count)]


def test_places_are_those_of_names():
    samples = drawn(60)
    for sample, tokens in zip(samples, encode(samples, Renderer(), TOKENIZER), strict=True):
        seen: dict[int, tuple[int, int]] = {}
        for at in tokens.named_T.nonzero()[0]:
            is_new = int(tokens.named_T[at]) not in seen
            what = (int(tokens.token_T[at]), int(tokens.kind_T[at]))
            assert seen.setdefault(int(tokens.named_T[at]), what) == what
            assert not (is_new and tokens.answer_T[at]), "it is read before it is said"
        chooses = tokens.kind_T != NO_CHOICE
        assert {int(kind) for kind in tokens.kind_T[chooses]} - {NO_DOMAIN} == {
            *sample.kinds.values()
        }
        assert (tokens.answer_T & chooses).any(), sample.task
        assert (tokens.kind_T[tokens.named_T == 0] == NO_CHOICE).all()


def test_a_name_is_told_from_others_by_its_first_token_of_its_own():
    names = ("get_weather", "get_time", "search")
    content = "\n".join(f"<function={name}>\n<parameter=city>" for name in names)
    said = "<function=get_time>\n<parameter=city>"
    answer = {"role": "assistant", "content": said, "reasoning_content": ""}
    ask = {"role": "user", "content": "What time is it?"}
    kinds = dict(zip(names, (0, 5, 3), strict=True))
    sample = Sample("x", "", [{"role": "system", "content": content}, ask, answer], kinds=kinds)
    (tokens,) = encode([sample], Renderer(), TOKENIZER)

    def text(chosen: np.ndarray) -> str:
        return TOKENIZER.decode(tokens.token_T[chosen].tolist())

    choosing = text(tokens.answer_T & (tokens.kind_T == 5))
    assert "=get_time".startswith(choosing)
    assert len(choosing) > len("=get"), "the part that both share is not enough"
    assert text(tokens.answer_T & (tokens.named_T > 0)) == "=get_time=city"
    asked = text(~tokens.answer_T & (tokens.named_T > 0))
    assert asked == "=get_weather=city=get_time=city=search=city"
    numbers = tokens.named_T[tokens.named_T > 0]
    assert len(set(numbers)) == len(numbers) - (tokens.answer_T & (tokens.named_T > 0)).sum()


def heads(query_BTE: torch.Tensor, key_BTE: torch.Tensor) -> Attention:
    """Both lessons' heads ask and offer the same."""
    attention = Attention(TEXT, torch.float32)
    attention.queries_and_keys = (
        query_BTE[:, None].expand(-1, 4, -1, -1),
        key_BTE[:, None].expand(-1, 2, -1, -1),
    )
    return attention


def lesson() -> tuple[torch.Tensor, torch.Tensor, Choices]:
    """Two tools of domains 3 and 7 named at 2 and 5, the second one said at 10."""
    code_NE = torch.cat((torch.zeros(len(DOMAINS), ROTARY), domain_codes(48)), dim=-1)
    named = torch.zeros(1, 12, dtype=torch.int64)
    kind = torch.full((1, 12), NO_CHOICE)
    answer = torch.arange(12)[None] >= 9
    named[0, 2], named[0, 5], named[0, 10] = 1, 2, 2
    kind[0, 2], kind[0, 5], kind[0, 10] = 3, 7, 7
    query, key = torch.zeros(2, 1, 12, 64)
    key[0, 2], key[0, 5], key[0, 10] = (8 * code_NE[n] for n in (3, 7, 7))
    query[0, 9] = 8 * code_NE[7]
    return query, key, Choices(named, kind, answer)


RIGHT, WRONG = {"chosen": 1.0, "copied": 1.0}, {"chosen": 0.0, "copied": 0.0}


def test_heads_that_have_learnt_it_lose_least():
    query, key, choices = lesson()
    loss, looked = choosing_loss(heads(query, key), ROTARY, choices)
    assert looked == RIGHT
    assert loss.item() < 0.3
    for wrong in (query.flip(-1), torch.zeros_like(query)):
        worse, _ = choosing_loss(heads(wrong, key), ROTARY, choices)
        assert worse.item() > loss.item() + 1
    swapped = key.clone()
    swapped[0, 2], swapped[0, 5] = key[0, 5], key[0, 2]
    worse, looked = choosing_loss(heads(query, swapped), ROTARY, choices)
    assert looked == WRONG
    assert worse.item() > loss.item() + 1
    blind = replace(choices, kind_BT=choices.kind_BT.where(choices.kind_BT < 0, NO_DOMAIN))
    only_looking, looked = choosing_loss(heads(query, key), ROTARY, blind)
    assert looked == RIGHT
    assert only_looking.item() < loss.item()


def test_what_comes_later_is_not_looked_at():
    query, key, choices = lesson()
    key[0, 10] *= 100
    key[0, 11] = 100 * query[0, 9]
    _, looked = choosing_loss(heads(query, key), ROTARY, choices)
    assert looked == RIGHT


def test_rows_keep_to_themselves():
    query, key, choices = lesson()
    twice = Choices(
        *(torch.cat((x, x)) for x in (choices.named_BT, choices.kind_BT, choices.answer_BT))
    )
    other = key.clone()
    other[0, 2], other[0, 5] = key[0, 5], key[0, 2]
    both = heads(torch.cat((query, query)), torch.cat((key, other)))
    _, looked = choosing_loss(both, ROTARY, twice)
    assert looked == {"chosen": 0.5, "copied": 0.5}


def test_nothing_to_say_costs_nothing():
    query, key, choices = lesson()
    silent = replace(choices, answer_BT=torch.zeros_like(choices.answer_BT))
    loss, looked = choosing_loss(heads(query, key), ROTARY, silent)
    assert loss.item() == 0.0
    assert looked == {}


def test_heads_learn_the_lesson():
    torch.manual_seed(0)
    _, _, choices = lesson()
    attention = Attention(TEXT, torch.float32)
    optimizer = torch.optim.Adam(attention.parameters(), 3e-3)
    x = torch.randn(1, 12, TEXT["hidden_size"])
    cos_sin = (torch.ones(12, ROTARY), torch.zeros(12, ROTARY))
    losses, looked = [], WRONG
    for _ in range(30):
        attention(x, cos_sin)
        loss, looked = choosing_loss(attention, ROTARY, choices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    assert looked == RIGHT
