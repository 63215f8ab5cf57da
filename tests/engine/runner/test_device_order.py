"""What the runner asks of a device, and in which order, on one that writes it down."""

import logging
import random
import threading
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch

from engine.grammar import GrammarRows, GrammarSpec
from engine.model.inputs import Caches, StepInputs
from engine.plan import SCRATCH
from engine.request import SamplingParams
from engine.runner.graphs import PATIENCE, DecodeGraphs, batch_sizes
from engine.runner.runner import Runner
from engine.runner.staging import NUM_BUFFERS, Staging, staged_bytes
from engine.runner.thread import IDLE_S, RunnerThread
from tests.engine.runner.driver import Life, book, plan_step, run_all
from tests.engine.runner.fake_model import HashModel, tiny_caches
from tests.engine.runner.recording_device import RecordingDevice
from tests.engine.runner.test_runner import REAL, VOCAB, samplings, solo

MAX_PAGES = 16
GREEDY = SamplingParams(max_tokens=60, seed=0, temperature=0)


class NotedModel(HashModel):
    """Says what it computed, and fails if padding touches anything that is not scratch."""

    def __init__(self, device: RecordingDevice) -> None:
        super().__init__(VOCAB)
        self._device = device
        self.last: StepInputs | None = None

    def forward(self, inputs: StepInputs, caches: Caches) -> torch.Tensor:
        self._device.log.append(f"model {inputs.num_decodes}+{inputs.num_prefills}")
        self.last = inputs
        return super().forward(inputs, caches)

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        self._device.log.append(f"logits {len(hidden_RD)}")
        return super().logits(hidden_RD)


class Bench:
    """A runner on a recording device."""

    def __init__(
        self,
        num_slots: int = 8,
        *,
        captures: bool = True,
        fails_to_capture: Callable[[int], bool] = lambda number: False,
        grammars: GrammarRows | None = None,
    ) -> None:
        self.device = RecordingDevice(captures=captures, fails_to_capture=fails_to_capture)
        self.model = NotedModel(self.device)
        self.runner = Runner(
            self.model,
            tiny_caches(VOCAB, num_pages=64, num_slots=num_slots),
            num_slots=num_slots + 1,
            num_real_tokens=REAL,
            max_step_tokens=2048,
            max_model_len=MAX_PAGES * 64,
            device=self.device,
            grammars=grammars,
        )

    def lives(self, count: int, sampling: SamplingParams = GREEDY) -> list[Life]:
        return [Life(f"r{i}", i, (i,), [i, 3], sampling) for i in range(1, count + 1)]

    def captured_all(self) -> "Bench":
        """Let the idle thread capture everything."""
        self.device.finish()
        self.runner.begin_captures()
        wait_until(lambda: self.runner._graphs.is_complete)
        self.device.finish()
        self.device.take_log()
        return self


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def book_step(runner: Runner, lives: list[Life]) -> None:
    plan = plan_step(lives)
    book(lives, plan, runner.launch(plan).result())


def without_uploads(log: list[str]) -> list[str]:
    return [entry for entry in log if entry != "upload"]


def test_a_prefill_is_one_copy_in_the_model_its_logits_and_one_copy_out() -> None:
    bench = Bench(captures=False)
    bench.runner.launch(plan_step(bench.lives(2))).result()
    assert without_uploads(bench.device.take_log()) == [
        "copy in 0",
        "record 0",
        "model 0+2",
        "logits 2",
        "copy out 1",
        "wait 1",
    ]
    bench.runner.stop()


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(max_tokens=60, seed=1, top_k=5),
        SamplingParams(max_tokens=60, seed=1, top_p=0.9, min_p=0.05),
    ],
)
def test_a_decode_step_sends_nothing_beside_its_one_copy(sampling: SamplingParams) -> None:
    bench = Bench(captures=False)
    lives = bench.lives(3, sampling)
    book_step(bench.runner, lives)
    bench.device.take_log()
    for _ in range(4):
        bench.device.finish()
        bench.runner.step(plan_step(lives))
        copy, record, *rest, wait = bench.device.take_log()
        assert copy.startswith("copy in")
        assert record.startswith("record")
        assert rest == ["model 3+0", "logits 3", "copy out 1"]
        assert wait.startswith("wait")
    bench.runner.stop()


@pytest.mark.parametrize("captured", [False, True])
def test_two_steps_are_queued_before_anyone_waits(captured: bool) -> None:
    """With every common kind of sampling; a third step may wait, but only for its buffer."""
    bench = Bench()
    if captured:
        bench.captured_all()
    wishes = [
        GREEDY,
        SamplingParams(max_tokens=60, seed=1, top_k=5, temperature=0.7, num_logprobs=2),
        SamplingParams(max_tokens=60, seed=2, top_p=0.9, min_p=0.05, presence_penalty=0.4),
        SamplingParams(max_tokens=60, seed=3, repetition_penalty=1.2, frequency_penalty=0.1),
        SamplingParams(max_tokens=60, seed=4, logit_bias=((5, 2.0), (6, -100.0)), min_tokens=9),
    ]
    lives = [Life(f"r{i}", i, (i,), [i, 3], s) for i, s in enumerate(wishes, 1)]
    book_step(bench.runner, lives)
    bench.device.finish()
    bench.device.take_log()
    plans = [plan_step(lives) for _ in range(3)]
    handles = [bench.runner.launch(plan) for plan in plans]
    wait_until(lambda: [e.split()[0] for e in bench.device.log].count("copy") == 6)
    log = bench.device.take_log()
    waits = [i for i, entry in enumerate(log) if entry.startswith("wait")]
    copies_in = [i for i, entry in enumerate(log) if entry.startswith("copy in")]
    assert waits == [copies_in[2] - 1]
    for handle in handles:
        with pytest.raises(TimeoutError):
            handle.result(timeout=0)
    bench.device.finish()
    for plan, handle in zip(plans, handles, strict=True):
        book(lives, plan, handle.result())
    for life in lives:
        assert life.output == solo(bench.model, life.ids[:2], life.sampling)[:4]
    bench.runner.stop()


def test_a_pinned_buffer_is_not_filled_again_before_its_copy_is_done() -> None:
    device = RecordingDevice()
    staging = Staging(device, staged_bytes(2, 10))
    assert NUM_BUFFERS == 2
    for i in range(3):
        first, second = staging.send([np.full(3, i, np.int32), np.full(10, -i)])
        assert (first.tolist(), second.tolist()) == ([i] * 3, [-i] * 10)
    assert device.take_log() == [
        "copy in 0",
        "record 0",
        "copy in 1",
        "record 1",
        "wait 0",
        "copy in 0",
        "record 2",
    ]
    again, _ = staging.send([np.full(3, 9, np.int32), np.zeros(0, np.int64)])
    assert again.data_ptr() == first.data_ptr()


def test_graphs_are_captured_when_idle_smallest_first_and_then_replayed() -> None:
    bench = Bench()
    assert batch_sizes(8) == (1, 2, 4, 8)
    lives = bench.lives(3)
    book_step(bench.runner, lives)
    book_step(bench.runner, lives)
    assert not any(e.startswith(("capture", "replay")) for e in bench.device.take_log())
    bench.runner.begin_captures()
    wait_until(lambda: bench.runner._graphs.is_complete)
    log = [e for e in bench.device.take_log() if e.startswith(("capture", "model", "replay"))]
    assert log == [
        *("model 4+0", "capture 0", "model 4+0"),  # three rows were missed once
        *("model 1+0", "capture 1", "model 1+0"),
        *("model 2+0", "capture 2", "model 2+0"),
        *("model 8+0", "capture 3", "model 8+0"),
    ]
    bench.device.finish()
    book_step(bench.runner, lives)
    copy, _, *rest = without_uploads(bench.device.take_log())
    assert copy.startswith("copy in")
    assert rest[:4] == ["replay 0", "model 4+0", "logits 3", "copy out 1"]
    bench.runner.stop()


def test_padding_is_scratch() -> None:
    bench = Bench().captured_all()
    lives = bench.lives(3)
    book_step(bench.runner, lives)
    book_step(bench.runner, lives)
    inputs = bench.model.last
    assert inputs is not None
    assert inputs.decode_slot_B.tolist() == [1, 2, 3, SCRATCH]
    assert inputs.decode_length_B.tolist() == [3, 3, 3, 0]
    assert inputs.position_T.tolist() == [2, 2, 2, 0]
    assert inputs.location_T.tolist() == [66, 130, 194, 0]
    assert inputs.decode_page_BM.tolist() == [[i, *[0] * (MAX_PAGES - 1)] for i in (1, 2, 3, 0)]
    bench.runner.stop()


def test_prefills_and_mixed_steps_go_without_graphs() -> None:
    bench = Bench().captured_all()
    old, new = bench.lives(2)
    book_step(bench.runner, [old])
    assert "model 0+1" in bench.device.log
    book_step(bench.runner, [old, new])
    assert "model 1+1" in bench.device.log
    assert not any(entry.startswith("replay") for entry in bench.device.take_log())
    book_step(bench.runner, [old, new])
    assert any(entry.startswith("replay") for entry in bench.device.take_log())
    bench.runner.stop()


def test_a_batch_larger_than_any_graph_goes_without() -> None:
    device = RecordingDevice()
    graphs = DecodeGraphs(device, lambda size: lambda: torch.zeros(size), max_rows=4)
    while not graphs.is_complete:
        graphs.capture_one()
    assert [graphs.find(n) is None for n in (1, 4, 5)] == [False, False, True]
    found = graphs.find(3)
    assert found is not None
    assert found[0] == 4


def test_sizes() -> None:
    assert batch_sizes(1) == (1,)
    assert batch_sizes(100) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)
    assert batch_sizes(300) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300)


def test_steady_load_gets_its_graph_between_two_steps() -> None:
    bench = Bench()
    lives = bench.lives(5)
    book_step(bench.runner, lives)
    bench.runner._captures = True  # as `begin_captures`, but the thread is never idle here
    for _ in range(PATIENCE):
        bench.runner._step_and_capture(plan_step(lives))
    log = bench.device.take_log()
    assert [e for e in log if e.startswith(("capture", "replay"))] == ["capture 0"]
    assert log.index("capture 0") > max(i for i, e in enumerate(log) if e.startswith("copy out"))
    bench.runner._step_and_capture(plan_step(lives))
    assert "replay 0" in bench.device.take_log()
    bench.runner.stop()


def test_nothing_is_captured_while_a_step_computes() -> None:
    bench = Bench()
    lives = bench.lives(1)
    handle = bench.runner.launch(plan_step(lives))
    wait_until(lambda: any(e.startswith("copy out") for e in bench.device.log))
    bench.runner.begin_captures()
    time.sleep(5 * IDLE_S)
    assert not any(entry.startswith("capture") for entry in bench.device.take_log())
    handle.result()
    wait_until(lambda: any(entry.startswith("capture") for entry in bench.device.log))
    bench.runner.stop()


def test_without_captures_every_step_is_launched_piece_by_piece() -> None:
    bench = Bench(captures=False)
    bench.runner.begin_captures()
    run_all(bench.runner, bench.lives(3))
    assert not any(e.startswith(("capture", "replay")) for e in bench.device.take_log())
    bench.runner.stop()


def test_a_failed_capture_costs_one_line_and_the_larger_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(fails_to_capture=lambda number: number >= 2)
    with caplog.at_level(logging.WARNING):
        bench.captured_all()
    (record,) = caplog.records
    assert "the graph for 4 decodes could not be captured" in record.message
    assert "not permitted" in record.message
    lives = bench.lives(5)
    for count, replays in ((5, False), (2, True), (3, False)):
        some = lives[:count]
        while any(life.planned < life.num_prompt for life in some):
            book_step(bench.runner, some)
        bench.device.take_log()
        book_step(bench.runner, some)
        assert any(e.startswith("replay") for e in bench.device.take_log()) == replays
    run_all(bench.runner, lives)
    for life in lives:
        assert life.output == solo(bench.model, life.ids[:2], GREEDY)
    bench.runner.stop()


def test_who_waits_for_graphs_is_told_of_those_that_will_not_come() -> None:
    """Else what is measured of graphs, or compared with them, would be of steps without."""
    bench = Bench(fails_to_capture=lambda number: number >= 2)
    bench.device.finish()
    bench.runner.begin_captures()
    with pytest.raises(RuntimeError, match=r"4 decodes could not be captured .*not permitted"):
        bench.runner.wait_for_captures()
    bench.runner.stop()


@pytest.mark.parametrize("captures", [False, True])
def test_who_waits_for_graphs_goes_on_when_all_are_there(captures: bool) -> None:
    bench = Bench(captures=captures)
    bench.device.finish()
    bench.runner.begin_captures()
    bench.runner.wait_for_captures()
    assert sum(entry.startswith("capture") for entry in bench.device.log) == captures * len(
        batch_sizes(8)
    )
    bench.runner.stop()


@pytest.mark.parametrize("seed", range(3))
def test_mixed_traffic_over_graphs_gives_solo_texts(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench()
    bench.runner.begin_captures()
    pages = rng.sample(range(1, 65), 64)
    lives = []
    for i, slot in enumerate(rng.sample(range(1, 9), 8)):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 5, 64, 65, 200]))]
        own = [pages.pop() for _ in range((len(prompt) + 40) // 64 + 1)]
        sampling = msgspec.structs.replace(samplings(rng), max_tokens=rng.randint(20, 40))
        lives.append(Life(f"r{i}", slot, own, prompt, sampling, rng.choice([64, 128])))
    run_all(bench.runner, lives, rng)
    for life in lives:
        assert life.output == solo(bench.model, life.ids[: life.num_prompt], life.sampling)
    assert any(entry.startswith("replay") for entry in bench.device.take_log())
    bench.runner.stop()


class FakeGrammars:
    """Allows even ids after an odd one and the other way round, and notes who asks when."""

    token_bytes = ()

    def __init__(self) -> None:
        self.log: list[str] = []
        self.advanced: dict[int, list[int]] = {}

    def admit(self, slot: int, spec: GrammarSpec | None, output_ids: tuple[int, ...] = ()) -> None:
        self.advanced[slot] = []

    def advance(self, slot: int, *token_ids: int) -> None:
        self.advanced[slot] += token_ids
        self.log.append(f"advance {slot}")

    def mask(self, slot: int) -> np.ndarray | None:
        self.log.append(f"mask {slot}")
        odd = sum(self.advanced[slot]) % 2
        return np.full(4, 0x55555555 << odd & 0x7FFFFFFF, dtype=np.int32)

    def close(self) -> None:
        pass


def grammar_sampling() -> SamplingParams:
    return msgspec.structs.replace(GREEDY, grammar=GrammarSpec(grammar="start: /.*/"))


def test_a_grammar_waits_for_the_tokens_before_after_the_model_is_queued() -> None:
    grammars = FakeGrammars()
    bench = Bench(grammars=grammars)  # type: ignore[arg-type]
    grammars.log = bench.device.log
    (life,) = bench.lives(1, grammar_sampling())
    first = bench.runner.launch(plan_step([life]))
    second = bench.runner.launch(plan_step([life]))
    second.result()
    log = without_uploads(bench.device.log)
    assert log[:-1] == [
        *("copy in 0", "record 0", "model 0+1", "logits 1", "mask 1", "copy out 1"),
        *("copy in 1", "record 2", "model 1+0", "logits 1"),
        *("wait 1", "advance 1", "mask 1", "copy out 1"),
    ]
    assert grammars.advanced[1] == list(first.result().token_ids)
    bench.runner.stop()


def test_tokens_of_a_slots_last_owner_do_not_reach_the_grammar_of_the_next() -> None:
    grammars = FakeGrammars()
    bench = Bench(grammars=grammars)  # type: ignore[arg-type]
    (life,) = bench.lives(1, grammar_sampling())
    bench.runner.launch(plan_step([life]))
    heir = Life("heir", 1, (2,), [5, 6, 7], grammar_sampling())
    token = bench.runner.launch(plan_step([heir])).result().token_ids[0]
    bench.device.finish()
    heir.ids.append(token)
    bench.runner.launch(plan_step([heir])).result()
    assert grammars.advanced[1] == [token]
    bench.runner.stop()


def test_steps_without_a_grammar_wait_for_nothing_though_there_are_grammars() -> None:
    grammars = FakeGrammars()
    bench = Bench(grammars=grammars)  # type: ignore[arg-type]
    lives = bench.lives(2)
    for _ in range(2):
        bench.runner.launch(plan_step(lives))
    wait_until(lambda: len([e for e in bench.device.log if e.startswith("copy out")]) == 2)
    assert not any(entry.startswith("wait") for entry in bench.device.log)
    assert grammars.log == []
    bench.runner.stop()


def test_the_thread_drops_what_has_not_begun_and_reports_what_fails() -> None:
    started, release = threading.Event(), threading.Event()

    def hold() -> int:
        started.set()
        release.wait(timeout=60)
        return 1

    def fail() -> int:
        raise KeyError("x")

    thread = RunnerThread(begin=lambda: None, when_idle=lambda: False)
    failed = thread.submit(fail)
    with pytest.raises(KeyError):
        failed.result(timeout=60)
    held, dropped = thread.submit(hold), thread.submit(fail)
    assert started.wait(timeout=60)
    threading.Timer(0.05, release.set).start()
    thread.stop()
    assert held.result() == 1
    assert dropped.cancelled()
    with pytest.raises(RuntimeError):
        thread.submit(fail)
