"""Runs step plans: the only place where rows, batch, model and sampler meet.

`step` is the one function for warm-up and for serving. `launch` queues it on the runner's own
thread, where steps run in order, so that the host can plan step N + 1 while step N computes. Rows,
page tables, graphs and caches belong to that thread once the first step was launched.

On a GPU the thread only queues the step on the device and starts the copy of its results; whoever
asks for the result waits for that copy. One thing needs tokens on the host before the next step can
go on: grammars. So a step that samples under one first queues its model, then waits for the tokens
of the step before, which are done by then or nearly.

lm_head sees only the rows that someone asks about, at most `LOGITS_ROWS` at a time: one fp32 row of
the real vocabulary is 1 MB.

Letters: T tokens of the step, R rows with logits, D hidden size, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import Protocol

import torch

from engine.device_memory import FEATURE_CACHE_BYTES, LOGITS_ROWS
from engine.grammar import GrammarError, GrammarRows
from engine.model.inputs import Caches, StepInputs
from engine.plan import PAGE_TOKENS, SCRATCH, Admit, DeviceLost, Slice, StepPlan, StepResult
from engine.runner.answer import Answer, Drawn, Scores
from engine.runner.batch import BatchBuilder, SampledRows
from engine.runner.device import CpuDevice, Device
from engine.runner.faults import is_device_lost
from engine.runner.graphs import DecodeGraphs
from engine.runner.pictures import Pictures, Tower
from engine.runner.positions import SlotPositions
from engine.runner.rows import Rows
from engine.runner.sampler import Masks, sample, score
from engine.runner.thread import IDLE_S, RunnerThread
from kernels.backend import fixed_shapes

_SCRATCH_DECODE = Slice(
    request_id="",
    epoch=0,
    slot=SCRATCH,
    start=0,
    num_tokens=1,
    token_ids=(),
    pages=(),
    decodes=True,
    samples=False,
)


class Model(Protocol):
    def forward(self, inputs: StepInputs, caches: Caches, /) -> torch.Tensor:
        """hidden_TD; advances the caches."""
        ...

    def logits(self, hidden_RD: torch.Tensor, /) -> torch.Tensor:
        """logits_RV in fp32, in a tensor of their own."""
        ...


class LaunchedStep:
    """A step that was launched, and may not have begun."""

    def __init__(self, begun: "Future[Answer]") -> None:
        self._begun = begun

    def result(self, timeout: float | None = None) -> StepResult:
        """Wait for the step. Raises TimeoutError after `timeout` seconds, or what it raised.

        Raises DeviceLost where a fault has poisoned the device's context.
        """
        try:
            if timeout is None:
                return self._begun.result().result()
            deadline = time.monotonic() + timeout
            answer = self._begun.result(timeout)
            return answer.result(max(0.0, deadline - time.monotonic()))
        except RuntimeError as error:
            if not is_device_lost(error):
                raise
            raise DeviceLost(str(error)) from error


class Runner:
    def __init__(
        self,
        model: Model,
        caches: Caches,
        *,
        num_slots: int,
        num_real_tokens: int,
        max_step_tokens: int,
        max_model_len: int,
        device: Device | None = None,
        grammars: GrammarRows | None = None,
        tower: Tower | None = None,
        fixes_shapes: bool = False,
    ) -> None:
        """`num_slots` counts the scratch slot; ids from `num_real_tokens` on are never sampled.

        Model, tower and caches are on `device`, by default the CPU. Without `grammars`, no request
        may have one, and thinking ends by its token only; without a `tower`, no picture.
        `fixes_shapes`: see `kernels.backend`.
        """
        self._model = model
        self._caches = caches
        self._device = device or CpuDevice()
        self._rows = Rows(
            num_slots=num_slots,
            num_real_tokens=num_real_tokens,
            token_bytes=grammars.token_bytes if grammars else (),
            device=self._device,
        )
        self._grammars = grammars
        self._unread: deque[tuple[Answer, dict[int, int]]] = deque()  # rows of slots with grammars
        self._pictures = Pictures(
            tower, self._device, num_slots=num_slots, cache_bytes=FEATURE_CACHE_BYTES
        )
        self._positions = SlotPositions(num_slots)
        self._batches = BatchBuilder(
            self._rows,
            self._positions,
            num_slots=num_slots,
            max_step_tokens=max_step_tokens,
            max_pages=-(-max_model_len // PAGE_TOKENS),
        )
        self._graphs = DecodeGraphs(
            self._device, self._prepare_decodes, max_rows=min(num_slots - 1, max_step_tokens)
        )
        self._fixes_shapes = fixes_shapes
        self._captures = False
        self._last: Answer | None = None
        num_threads = torch.get_num_threads()
        self._thread = RunnerThread(
            # OpenMP keeps the number per thread: a new one would start with its own default.
            begin=lambda: torch.set_num_threads(num_threads),
            when_idle=self._capture_when_idle,
        )

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Queue a step. What goes wrong in it is raised by `result()` of what this returns."""
        return LaunchedStep(self._thread.submit(lambda: self._step_and_capture(plan)))

    def begin_captures(self) -> None:
        """From now on, capture graphs between steps. Until then none are."""
        self._captures = True
        self._thread.submit(lambda: None)  # it may have gone to sleep

    def wait_for_captures(self) -> None:
        """Hold the caller until nothing is left to capture, for measurements and tests.

        Raises RuntimeError if a capture failed: steps of its size, and larger ones, have no graph.
        """
        while not self._graphs.is_complete:
            time.sleep(IDLE_S)
        if self._graphs.failure is not None:
            raise RuntimeError(self._graphs.failure)

    @property
    def progress(self) -> int:
        """Grows within a step as long as that encodes pictures, which may take minutes."""
        return self._pictures.num_pieces

    def stop(self) -> None:
        """Drop the steps that have not begun, and wait for the one that has."""
        self._thread.stop()
        self._device.synchronize()
        if self._grammars is not None:
            self._grammars.close()

    def step(self, plan: StepPlan) -> StepResult:
        """Compute one step here and now. Not while a launched one may be running."""
        return self._step(plan).result()

    def _step_and_capture(self, plan: StepPlan) -> Answer:
        self._last = self._step(plan)
        if self._captures and self._graphs.is_urgent:
            self._capture()
        return self._last

    def _capture_when_idle(self) -> bool:
        if not self._captures or self._graphs.is_complete:
            return False
        if self._last is None or self._last.has_arrived:
            self._capture()
        return True

    @torch.inference_mode()
    def _capture(self) -> None:
        with fixed_shapes(self._fixes_shapes):
            self._graphs.capture_one()

    def _prepare_decodes(self, num_rows: int) -> Callable[[], torch.Tensor]:
        batch = self._batches.send(StepPlan((_SCRATCH_DECODE,) * num_rows))
        return lambda: self._model.forward(self._batches.inputs(batch), self._caches)

    @torch.inference_mode()
    def _step(self, plan: StepPlan) -> Answer:
        with fixed_shapes(self._fixes_shapes):
            return self._queue(plan)

    def _queue(self, plan: StepPlan) -> Answer:
        """Queue all of a step."""
        for admit in plan.admits:  # this cannot fail, so no step ever sees another owner's pages
            self._batches.forget(admit.slot)
            grids = self._pictures.admit(admit.slot, admit.media)
            self._positions.admit(admit.slot, grids)
        for admit in plan.admits:
            self._rows.admit(admit)
            self._admit_grammar(admit)
        self._restore(plan.admits)
        self._advance_grammars(waits=False)
        if not plan.slices:
            return Answer(self._device, [], [], [], [])
        unencoded: list[str] = []
        hidden_TD, sampled = self._forward(plan, unencoded)
        ends = list(accumulate(part.num_tokens for part in plan.slices))
        # Scores first: they read the rows as the plan found them.
        prompt_scores = [
            self._score_prompt(part, hidden_TD[end - part.num_tokens : end])
            for part, end in zip(plan.slices, ends, strict=True)
            if part.scores_prompt
        ]
        parts = plan.sampled
        failed: list[str] = []
        drawn: list[Drawn] = []
        for i in range(0, len(parts), LOGITS_ROWS):
            few = slice(i, i + LOGITS_ROWS)
            drawn.append(self._sample(hidden_TD, sampled[few], parts[few], failed))
        answer = Answer(self._device, drawn, prompt_scores, failed, unencoded)
        if rows := {p.slot: i for i, p in enumerate(parts) if self._rows[p.slot].has_grammar}:
            self._unread.append((answer, rows))
            self._advance_grammars(waits=False)
        return answer

    def _forward(self, plan: StepPlan, unencoded: list[str]) -> tuple[torch.Tensor, SampledRows]:
        """hidden_TD, with rows of scratch at its end if a graph was replayed.

        Adds to `unencoded` whose pictures could not be encoded.
        """
        only_decodes = all(part.decodes for part in plan.slices)
        found = self._graphs.find(len(plan.slices)) if only_decodes else None
        if found is None:
            features = self._pictures.features(plan.slices, unencoded)
            batch = self._batches.send(plan)
            hidden_TD = self._model.forward(self._batches.inputs(batch, features), self._caches)
            return hidden_TD, batch.sampled
        num_rows, graph = found
        batch = self._batches.send(plan, num_rows=num_rows)
        return graph.replay(), batch.sampled

    def _sample(
        self,
        hidden_TD: torch.Tensor,
        sampled: SampledRows,
        parts: Sequence[Slice],
        failed: list[str],
    ) -> Drawn:
        """Draw one token for each row. Adds to `failed` who cannot go on."""
        logits_RV = self._model.logits(hidden_TD[sampled.row_R])
        return sample(self._rows, logits_RV, sampled, self._masks(parts, failed))

    def _score_prompt(self, part: Slice, hidden_TD: torch.Tensor) -> list[Scores]:
        """Of the tokens that follow the slice's own, as far as the prompt goes."""
        row = self._rows[part.slot]
        assert row.prompt_id_T is not None, "no prompt logprobs were asked for"
        successor_T = row.prompt_id_T[part.start + 1 : part.start + part.num_tokens + 1]
        scores: list[Scores] = []
        for i in range(0, len(successor_T), LOGITS_ROWS):
            token_R = successor_T[i : i + LOGITS_ROWS]
            logits_RV = self._model.logits(hidden_TD[i : i + len(token_R)])
            num_top = [row.num_prompt_logprobs] * len(token_R)
            scores += score(self._rows, logits_RV, token_R, num_top)
        return scores

    def _restore(self, admits: Sequence[Admit]) -> None:
        """Copy saved states to the slots of those that continue from them."""
        pairs = [(one.saved_slot, one.slot) for one in admits if one.saved_slot != SCRATCH]
        if not pairs:
            return
        saved_Y = self._rows.index([saved for saved, _ in pairs])
        slot_Y = self._rows.index([slot for _, slot in pairs])
        for pool in (*self._caches.conv_LPCX, *self._caches.state_LPNKV):
            pool.index_copy_(0, slot_Y, pool.index_select(0, saved_Y))

    def _admit_grammar(self, admit: Admit) -> None:
        if self._grammars is None:
            assert admit.sampling.grammar is None, "this runner has no grammars"
            return
        for _, rows in self._unread:  # tokens of the slot's last owner
            rows.pop(admit.slot, None)
        output_ids = admit.ids[admit.num_prompt_tokens :]
        self._grammars.admit(admit.slot, admit.sampling.grammar, output_ids)

    def _advance_grammars(self, *, waits: bool) -> None:
        """Hand over the tokens of the steps before, as far as they are here, or wait for them."""
        if self._grammars is None:
            return
        while self._unread and (waits or self._unread[0][0].has_arrived):
            answer, rows = self._unread.popleft()
            token_ids = answer.result().token_ids
            for slot, row in rows.items():
                self._grammars.advance(slot, token_ids[row])

    def _masks(self, parts: Sequence[Slice], failed: list[str]) -> Masks:
        """Grammar masks by row: they were computed while the model ran."""
        masks: Masks = {}
        if self._grammars is None or not any(self._rows[p.slot].has_grammar for p in parts):
            return masks
        self._advance_grammars(waits=True)
        for row, part in enumerate(parts):
            try:
                mask = self._grammars.mask(part.slot)
            except GrammarError:
                failed.append(part.request_id)
                continue
            if mask is not None:
                masks[row] = mask
        return masks
