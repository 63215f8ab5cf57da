"""A real engine process around the fake runner: run as `python fake_worker.py`, speaks engine.ipc.

Certain prompt ids make the fake device misbehave, so that tests can order a fault like a dish.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.client import EngineInfo
from engine.config import EngineConfig, MemoryPlan
from engine.plan import StepPlan, StepResult
from engine.worker import Built, main
from tests.engine.simulation import VOCAB, FakeRunner, StepFailed

DIES = 90
HANGS = 91
RAISES = 92
SLOW = 93  # 20 ms a step
STUCK = 94  # its grammar allows nothing to follow
ENCODES = 95  # each step takes `ENCODING_S`, and shows progress
UNENCODED = 96  # its picture cannot be encoded
BREAKS = 97  # from now on no step goes well

ENCODING_S = 2.5

NUM_PAGES = 20
NUM_SLOTS = 4


class Handle:
    def __init__(self, result: StepResult | None, hangs: bool = False) -> None:
        self._result = result
        self._hangs = hangs

    def result(self, timeout: float | None = None) -> StepResult:
        if self._hangs:
            time.sleep(timeout or 0.0)
            raise TimeoutError
        if self._result is None:
            raise StepFailed
        return self._result


class EncodingHandle(Handle):
    def __init__(self, result: StepResult, runner: "FaultyRunner") -> None:
        super().__init__(result)
        self._runner = runner
        self._done_at = time.monotonic() + ENCODING_S

    def result(self, timeout: float | None = None) -> StepResult:
        left_s = max(0.0, self._done_at - time.monotonic())
        if timeout is not None and left_s > timeout:
            time.sleep(timeout)
            self._runner.progress += 1
            raise TimeoutError
        time.sleep(left_s)
        return super().result()


class FaultyRunner:
    def __init__(self) -> None:
        self._runner = FakeRunner(NUM_PAGES, NUM_SLOTS)
        self._hangs = False
        self._broken = False
        self.progress = 0

    def launch(self, plan: StepPlan) -> Handle:
        for admit in plan.admits:
            if DIES in admit.ids[: admit.num_prompt_tokens]:
                os.kill(os.getpid(), signal.SIGKILL)
        rows = {**self._runner.rows, **{admit.slot: admit for admit in plan.admits}}
        prompts = [rows[part.slot].ids[: rows[part.slot].num_prompt_tokens] for part in plan.slices]
        self._hangs |= any(HANGS in prompt for prompt in prompts)
        if self._hangs:
            return Handle(None, hangs=True)
        if any(SLOW in prompt for prompt in prompts):
            time.sleep(0.02)
        self._broken |= any(BREAKS in prompt for prompt in prompts)
        if self._broken:
            return Handle(None)
        result = self._runner.step(plan)
        if any(RAISES in prompt for prompt in prompts):
            self._runner.rubbish |= {part.slot for part in plan.slices}
            return Handle(None)
        stuck = tuple(
            part.request_id
            for part, prompt in zip(plan.slices, prompts, strict=True)
            if STUCK in prompt and part.samples
        )
        unencoded = tuple(
            part.request_id
            for part, prompt in zip(plan.slices, prompts, strict=True)
            if UNENCODED in prompt
        )
        result = replace(result, failed=stuck, unencoded=unencoded)
        if any(ENCODES in prompt for prompt in prompts):
            return EncodingHandle(result, self)
        return Handle(result)


def build(config: EngineConfig) -> Built:
    if config.dtype == "bad":
        raise ValueError("dtype bad is not one we know")
    if config.dtype == "crash":
        raise RuntimeError("crashed while loading")
    memory = MemoryPlan(
        num_pages=NUM_PAGES,
        num_slots=NUM_SLOTS,
        page_bytes=1,
        slot_bytes=1,
        max_model_len=1000,
        max_num_seqs=NUM_SLOTS,
        max_step_tokens=256,
    )
    info = EngineInfo(
        pid=os.getpid(),
        architecture="fake",
        dtype="int",
        device="cpu",
        num_parameters=0,
        weight_bytes=0,
        load_s=0.0,
        max_model_len=memory.max_model_len,
        max_num_seqs=NUM_SLOTS,
        max_step_tokens=memory.max_step_tokens,
        num_pages=NUM_PAGES,
        num_slots=NUM_SLOTS,
        cache_bytes=0,
    )
    runner = FaultyRunner()
    return Built(
        runner=runner,
        memory=memory,
        info=info,
        num_real_tokens=VOCAB,
        progress=lambda: runner.progress,
    )


if __name__ == "__main__":
    main(build)
