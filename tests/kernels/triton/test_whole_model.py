"""The whole tiny model, sampling included, through Triton and through the CPU's kernels: one text.

fp32 on both sides. They sum in different orders, and `tl.dot` may round its operands on a GPU, so
log-probabilities agree within a tolerance.
"""

from pathlib import Path

import pytest
import torch

from engine.config import MemoryPlan, ModelConfig
from engine.model.weights import load_model
from engine.request import SamplingParams
from engine.runner.cuda import CudaDevice
from engine.runner.device import CpuDevice, Device
from engine.runner.runner import Runner
from engine.runner.tensors import allocate_caches
from tests.checkpoints import NUM_REAL_TOKENS, build_checkpoint
from tests.engine.runner.driver import Life, book, plan_step
from tests.kernels.triton.outside import outside

TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}  # of logits whose spread is 3
PLAN = MemoryPlan(
    num_pages=16,
    num_slots=4,
    page_bytes=0,
    slot_bytes=0,
    max_model_len=256,
    max_num_seqs=4,
    max_step_tokens=256,
)


def make_runner(folder: Path, device: Device) -> Runner:
    config = ModelConfig.from_dir(folder)
    at = device.torch_device
    model = load_model(folder, config, "float32", device=at, shows_progress=False).model
    return Runner(
        model,
        allocate_caches(config, PLAN, dtype=torch.float32, device=at),
        num_slots=PLAN.num_slots + 1,
        num_real_tokens=NUM_REAL_TOKENS,
        max_step_tokens=PLAN.max_step_tokens,
        max_model_len=PLAN.max_model_len,
        device=device,
    )


def lives() -> list[Life]:
    """Prompts of a few tokens, because an interpreter reads each program; sampled in many ways."""
    wishes = (
        {"temperature": 0.0, "num_prompt_logprobs": 1},
        {"top_p": 0.8, "presence_penalty": 0.5},
        {"top_k": 8, "repetition_penalty": 1.1, "logit_bias": ((7, 2.0), (9, -100.0))},
    )
    return [
        Life(
            f"r{slot}",
            slot,
            (slot,),
            [(31 * slot + 7 * i) % NUM_REAL_TOKENS for i in range(length)],
            SamplingParams(max_tokens=3, seed=slot, num_logprobs=2, **wish),
        )
        for slot, (length, wish) in enumerate(zip((5, 1, 2), wishes, strict=True), 1)
    ]


def run(runner: Runner, sequences: list[Life]) -> None:
    """In this thread: which kernels run is settled for a thread, not for the process."""
    while active := [life for life in sequences if not life.done]:
        plan = plan_step(active)
        book(active, plan, runner.step(plan))
    runner.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_the_text_is_the_cpus(moe: bool, device: torch.device, tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, moe=moe, num_hidden_layers=4)
    ours, theirs = lives(), lives()
    run(make_runner(folder, CudaDevice() if device.type == "cuda" else CpuDevice()), ours)
    outside(run, make_runner(folder, CpuDevice()), theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids == other.ids
        pairs = [*zip(one.entries, other.entries, strict=True)]
        pairs += zip(one.scores, other.scores, strict=True)
        for found, expected in pairs:
            assert found is not None
            assert expected is not None
            assert found.logprob == pytest.approx(expected.logprob, abs=TOLERANCE[device.type])
            assert found.rank == expected.rank or device.type == "cuda"
