"""Prompts with pictures through the whole engine give transformers' greedy text, however served.

As in `test_serving_parity`: fp32 on both sides, and prompts whose texts hang on no near tie. Text
requests run beside them, whose text must not change either.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.build import build
from engine.config import EngineConfig
from engine.loop import EngineLoop
from engine.memory import PagePool, PrefixCache, SlotPool
from engine.request import Request, SamplingParams
from engine.runner.runner import Runner
from tests.checkpoints import NUM_REAL_TOKENS, NUM_TEXT_TOKENS, Oracle
from tests.engine.inprocess import Outcome, ScriptedMailbox, greedy, serve, serve_again
from tests.engine.picture_prompts import Prompt, Shape, make_prompt

PIECES: dict[str, Sequence[int | Shape]] = {
    "text": [150],
    "more text": [64],
    "first": [Shape(7, 9), 20],
    "middle": [90, Shape(12, 11), 30],  # over more than two pages
    "last": [31, Shape(8, 8)],  # ends a page to the token
    "several": [5, Shape(2, 2), Shape(1, 60), 9, Shape(9, 8), 130],
    "video": [10, *[Shape(5, 6, 2), 4] * 4, 25],
}
NUM_OUTPUT = 70


class Model:
    def __init__(self, folder: Path, oracle: Oracle) -> None:
        config = EngineConfig(
            model_dir=str(folder),
            num_real_tokens=NUM_REAL_TOKENS,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=8,
            max_step_tokens=1024,
            cache_bytes=64 << 20,
        )
        built = build(config)
        assert built.info.serves_media
        assert isinstance(built.runner, Runner)
        self.runner = built.runner
        self.prompts = {name: make_prompt(pieces) for name, pieces in PIECES.items()}
        self.texts = {
            name: oracle.greedy(prompt.ids, NUM_OUTPUT, NUM_REAL_TOKENS, prompt.media)
            for name, prompt in self.prompts.items()
        }
        assert min(len(set(text)) for text in self.texts.values()) > 20  # none loops

    @property
    def requests(self) -> list[Request]:
        return [request_of(name, prompt) for name, prompt in self.prompts.items()]


def request_of(name: str, prompt: Prompt, max_tokens: int = NUM_OUTPUT) -> Request:
    request = greedy(name, prompt.ids, max_tokens)
    return msgspec.structs.replace(request, media=prompt.media)


@pytest.fixture(scope="module")
def model(tiny_vision_dir: Path, tiny_vision_oracle: Oracle) -> Model:
    return Model(tiny_vision_dir, tiny_vision_oracle)


def together(runner: Runner, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=60, num_slots=8, max_step_tokens=1024)


def staggered(runner: Runner, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=60, num_slots=8, max_step_tokens=512, every=3)


def chunked(runner: Runner, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=60, num_slots=8, max_step_tokens=80)


def alone(runner: Runner, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=60, num_slots=1, max_step_tokens=1024)


def preempted(runner: Runner, requests: Sequence[Request]) -> Outcome:
    """The youngest come back: all after the first two have pictures."""
    outcome = serve(runner, requests, num_pages=9, num_slots=8, max_step_tokens=512)
    assert outcome.num_preemptions > 0
    return outcome


def cached(runner: Runner, requests: Sequence[Request]) -> Outcome:
    """All but the last page of each was computed for another request, and by other chunks."""
    return serve_again(runner, requests, num_pages=60, num_slots=8, max_step_tokens=80)


ServedAs = Callable[[Runner, Sequence[Request]], Outcome]


@pytest.mark.parametrize("served", [together, staggered, chunked, alone, preempted, cached])
def test_greedy_text_equals_transformers(model: Model, served: ServedAs) -> None:
    outcome = served(model.runner, model.requests)
    assert {name: outcome.ids(name) for name in model.texts} == model.texts


def test_another_picture_gives_another_text(model: Model) -> None:
    request = request_of("middle", make_prompt(PIECES["middle"], picture_seed=1))
    assert request.prompt_ids == tuple(model.prompts["middle"].ids)
    assert alone(model.runner, [request]).ids("middle") != model.texts["middle"]


def test_logprobs_do_not_depend_on_chunking_nor_on_the_batch(model: Model) -> None:
    requests = [
        msgspec.structs.replace(
            request,
            sampling=SamplingParams(
                max_tokens=6, seed=i, temperature=0.8, num_logprobs=2, num_prompt_logprobs=1
            ),
        )
        for i, request in enumerate(model.requests)
    ]

    def reported(outcome: Outcome) -> dict[str, Any]:
        return {
            name: [(d.token_ids, d.logprobs, d.prompt_logprobs) for d in deltas]
            for name, deltas in outcome.deltas.items()
        }

    expected = reported(together(model.runner, requests))
    assert expected.keys() == model.texts.keys()
    for served in (chunked, staggered, alone):
        assert reported(served(model.runner, requests)) == expected


def test_a_picture_is_encoded_once_for_all_who_bring_it(model: Model) -> None:
    pieces = [3, Shape(4, 5), 20]
    prompt = make_prompt(pieces, picture_seed=77)
    later = make_prompt([9, *pieces, Shape(2, 3), 5], picture_seed=77)  # its next turn
    assert later.media[0].pixels == prompt.media[0].pixels
    before = model.runner.progress
    together(model.runner, [request_of(f"choice {i}", prompt, 3) for i in range(4)])
    each = model.runner.progress - before
    assert each == 6  # of a picture of few patches: embedding, two blocks twice, merger
    together(model.runner, [request_of("later", later, 3)])
    assert model.runner.progress - before == 2 * each


def test_a_picture_that_cannot_be_encoded_fails_its_own_request(model: Model) -> None:
    prompt = make_prompt([70, Shape(3, 3), 20])
    (media,) = prompt.media
    broken = msgspec.structs.replace(media, pixels=media.pixels[:-1])
    request = msgspec.structs.replace(request_of("broken", prompt), media=(broken,))
    rng = random.Random(1)
    neighbour = greedy("late", rng.choices(range(NUM_TEXT_TOKENS), k=40), 8)
    expected = alone(model.runner, [neighbour]).ids("late")
    first = request_of("first", model.prompts["first"])
    mailbox = ScriptedMailbox([(0, first), (0, request), (0, neighbour)])
    pages, slots = PagePool(60), SlotPool(8)
    cache = PrefixCache(pages, SlotPool(9, first=9), pages_per_state=1)
    loop = EngineLoop(
        pages,
        slots,
        cache,
        model.runner,
        mailbox,
        max_step_tokens=80,
        max_waiting=9,
        queue_timeout_s=600,
    )
    while mailbox.arrivals or loop.has_work:
        loop.turn()
        loop._scheduler.check()
    assert {failure.request_id for failure in mailbox.failures} == {"broken"}
    assert {failure.code for failure in mailbox.failures} == {"internal_error"}
    outcome = Outcome(mailbox.deltas, 0, 0)
    assert "broken" not in outcome.deltas
    assert outcome.ids("first") == model.texts["first"]
    assert outcome.ids("late") == expected
    assert loop._scheduler.num_preemptions == 0
    assert loop._scheduler.num_pages_used == slots.num_used == 0
    again = msgspec.structs.replace(request, id="again")  # nothing of it was kept
    mailbox.arrivals.append((0, again))
    while mailbox.arrivals or loop.has_work:
        loop.turn()
    assert mailbox.failures[-1].request_id == "again"
