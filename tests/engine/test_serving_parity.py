"""Sixteen prompts through the whole engine give transformers' greedy text, however they are served.

fp32 on both sides. The two sum in different orders, so their logits differ by about 1e-6 of their
spread; a text can only differ where two tokens are closer than that, which these prompts are not.
Between two runs of our own engine the promise is stronger: batching and chunking on the page grid
change no bit, so texts of sampled requests are compared exactly, too.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from engine.build import build
from engine.config import EngineConfig
from engine.loop import EngineLoop, Launcher
from engine.memory import PagePool, PrefixCache, SlotPool, pages_for
from engine.model.inputs import Caches, StepInputs
from engine.plan import DeviceLost
from engine.request import FinishReason, Request, SamplingParams
from engine.runner.runner import Runner
from tests.checkpoints import NUM_REAL_TOKENS, Oracle
from tests.engine.inprocess import Outcome, ScriptedMailbox, greedy, serve, serve_again

LENGTHS = (1, 2, 3, 63, 64, 65, 100, 127, 128, 129, 200, 300, 420, 511, 640, 700)
NUM_OUTPUT = 80  # more than a page, so that every sequence grows
ALL_PAGES = sum(pages_for(length + NUM_OUTPUT) for length in LENGTHS) + len(LENGTHS)


class Model:
    """One loaded checkpoint and what transformers says of the prompts."""

    def __init__(self, folder: Path, oracle: Oracle) -> None:
        config = EngineConfig(
            model_dir=str(folder),
            num_real_tokens=NUM_REAL_TOKENS,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=len(LENGTHS),
            max_step_tokens=1024,
            cache_bytes=64 << 20,
        )
        built = build(config)
        assert built.memory.num_pages >= ALL_PAGES
        assert built.memory.num_slots >= len(LENGTHS)
        self.runner: Launcher = built.runner
        rng = random.Random(7)
        self.prompts = {
            f"r{i}": [rng.randrange(NUM_REAL_TOKENS) for _ in range(length)]
            for i, length in enumerate(LENGTHS)
        }
        self.texts = {
            name: oracle.greedy(prompt, NUM_OUTPUT, NUM_REAL_TOKENS)
            for name, prompt in self.prompts.items()
        }

    @property
    def requests(self) -> list[Request]:
        return [greedy(name, prompt, NUM_OUTPUT) for name, prompt in self.prompts.items()]


@pytest.fixture(scope="module", params=["moe", "dense"])
def model(request: pytest.FixtureRequest) -> Model:
    kind = request.param
    return Model(
        request.getfixturevalue(f"tiny_{kind}_dir"), request.getfixturevalue(f"tiny_{kind}_oracle")
    )


def together(runner: Launcher, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=ALL_PAGES, num_slots=16, max_step_tokens=1024)


def staggered(runner: Launcher, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=ALL_PAGES, num_slots=16, max_step_tokens=512, every=3)


def chunked(runner: Launcher, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=ALL_PAGES, num_slots=16, max_step_tokens=80)


def alone(runner: Launcher, requests: Sequence[Request]) -> Outcome:
    return serve(runner, requests, num_pages=ALL_PAGES, num_slots=1, max_step_tokens=1024)


def preempted(runner: Launcher, requests: Sequence[Request]) -> Outcome:
    outcome = serve(runner, requests, num_pages=26, num_slots=16, max_step_tokens=512)
    assert outcome.num_preemptions > 0
    return outcome


def cached(runner: Launcher, requests: Sequence[Request]) -> Outcome:
    """All but the last page of each was computed for another request, and by other chunks."""
    return serve_again(runner, requests, num_pages=ALL_PAGES, num_slots=16, max_step_tokens=80)


ServedAs = Callable[[Launcher, Sequence[Request]], Outcome]


@pytest.mark.parametrize("served", [together, staggered, chunked, alone, preempted, cached])
def test_greedy_text_equals_transformers(model: Model, served: ServedAs) -> None:
    outcome = served(model.runner, model.requests)
    assert {name: outcome.ids(name) for name in model.texts} == model.texts
    assert outcome.max_batch == 1 or served is not alone
    for name in model.texts:
        finishes = [delta.finish for delta in outcome.deltas[name]]
        assert finishes == [None] * (len(finishes) - 1) + [FinishReason.LENGTH]


@pytest.mark.parametrize("served", [staggered, chunked, alone, cached])
def test_sampled_text_and_logprobs_do_not_depend_on_the_batch(
    model: Model, served: ServedAs
) -> None:
    requests = [
        msgspec.structs.replace(
            request,
            sampling=SamplingParams(
                max_tokens=12,
                seed=i,
                temperature=0.9,
                top_p=0.95,
                top_k=(0, 20)[i % 2],
                presence_penalty=0.5,
                num_logprobs=3,
            ),
        )
        for i, request in enumerate(model.requests)
    ]
    expected = together(model.runner, requests)
    found = served(model.runner, requests)
    assert expected.max_batch == 16
    for request in requests:
        name = request.id
        assert found.ids(name) == expected.ids(name)
        assert [d.logprobs for d in found.deltas[name]] == [
            d.logprobs for d in expected.deltas[name]
        ]


def test_prompt_logprobs_do_not_depend_on_chunking(model: Model) -> None:
    requests = [
        msgspec.structs.replace(
            request, sampling=SamplingParams(max_tokens=0, seed=0, num_prompt_logprobs=2)
        )
        for request in model.requests
    ]
    whole = together(model.runner, requests)
    cut = chunked(model.runner, requests)
    for request in requests:
        (one,), (other,) = whole.deltas[request.id], cut.deltas[request.id]
        assert len(one.prompt_logprobs) == len(request.prompt_ids)
        assert one.prompt_logprobs[0] is None
        assert one.prompt_logprobs == other.prompt_logprobs


@pytest.mark.parametrize("served", [staggered, chunked, alone, preempted])
def test_dry_xtc_and_thinking_budgets_do_not_depend_on_the_batch(
    model: Model, served: ServedAs
) -> None:
    end_id = 17
    requests = [
        msgspec.structs.replace(
            request,
            sampling=SamplingParams(
                max_tokens=NUM_OUTPUT,
                seed=i,
                temperature=0.8,
                top_p=(1.0, 0.9)[i % 2],
                top_k=(0, 0, 30)[i % 3],
                dry_multiplier=(0.0, 3.0)[i % 2],
                dry_allowed_length=1,
                dry_last_n=(-1, 50)[i // 2 % 2],
                dry_breaker_ids=(5, 6),
                dry_breakers=((7, 8), (9, 10, 11)),
                xtc_probability=(0.5, 0.0, 1.0)[i % 3],
                xtc_threshold=0.02,
                thinking_budget=4 * i + 1,
                thinking_end_id=end_id,
            ),
        )
        for i, request in enumerate(model.requests)
    ]
    expected = together(model.runner, requests)
    found = served(model.runner, requests)
    for i, request in enumerate(requests):
        ids = found.ids(request.id)
        assert ids == expected.ids(request.id)
        assert end_id in ids[: 4 * i + 2]
        assert ids[4 * i + 1] == end_id or end_id in ids[: 4 * i + 1]


@pytest.mark.parametrize("max_step_tokens", [80, 1024])
def test_requests_that_break_the_model_fail_alone(
    model: Model, max_step_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises when all states and pages of the step were written, as the worst fault would."""
    assert isinstance(model.runner, Runner)
    inner = model.runner._model
    poison = 3  # in every prompt by chance, so the broken one has it many times

    class Breaking:
        def forward(self, inputs: StepInputs, caches: Caches) -> torch.Tensor:
            hidden_TD = inner.forward(inputs, caches)
            if (inputs.token_id_T == poison).sum() > 40:
                raise RuntimeError("broken")
            return hidden_TD

        def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
            return inner.logits(hidden_RD)

    monkeypatch.setattr(model.runner, "_model", Breaking())
    broken = [greedy(f"broken {i}", [poison] * 160, 5) for i in range(4)]
    requests = [*model.requests[:8], *broken, *model.requests[8:]]
    mailbox = ScriptedMailbox([(i // 4, request) for i, request in enumerate(requests)])
    pages = PagePool(ALL_PAGES)
    cache = PrefixCache(pages, SlotPool(20, first=17), pages_per_state=1)
    loop = EngineLoop(
        pages,
        SlotPool(16),
        cache,
        model.runner,
        mailbox,
        max_step_tokens=max_step_tokens,
        max_waiting=20,
        queue_timeout_s=600,
    )
    while mailbox.arrivals or loop.has_work:
        loop.turn()
        loop._scheduler.check()
    assert sorted((one.request_id, one.code) for one in mailbox.failures) == [
        (request.id, "internal_error") for request in broken
    ]
    outcome = Outcome(mailbox.deltas, 0, 0)
    assert {name: outcome.ids(name) for name in model.texts} == model.texts
    assert not {request.id for request in broken} & set(outcome.deltas)


def test_a_lost_device_is_told_from_a_failed_step(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(model.runner, Runner)

    class Lost:
        def forward(self, inputs: StepInputs, caches: Caches) -> torch.Tensor:
            raise torch.AcceleratorError("an illegal memory access was encountered")

        def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    monkeypatch.setattr(model.runner, "_model", Lost())
    with pytest.raises(DeviceLost, match="illegal memory access"):
        alone(model.runner, model.requests[:1])
