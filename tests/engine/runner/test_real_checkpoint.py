"""Runner, sampler and a real model together, against transformers."""

import random
from pathlib import Path

import torch

from engine.config import MemoryPlan, ModelConfig
from engine.model.weights import load_model
from engine.request import SamplingParams
from engine.runner.runner import Model, Runner
from engine.runner.tensors import allocate_caches
from tests.checkpoints import NUM_REAL_TOKENS, Oracle
from tests.engine.runner.driver import Life, run_all


def real_runner(folder: Path) -> Runner:
    config = ModelConfig.from_dir(folder)
    model: Model = load_model(folder, config, "float32").model
    plan = MemoryPlan(
        num_pages=16,
        num_slots=4,
        page_bytes=0,
        slot_bytes=0,
        max_model_len=512,
        max_num_seqs=4,
        max_step_tokens=512,
    )
    caches = allocate_caches(config, plan, dtype=torch.float32)
    return Runner(
        model,
        caches,
        num_slots=5,
        num_real_tokens=NUM_REAL_TOKENS,
        max_step_tokens=plan.max_step_tokens,
        max_model_len=plan.max_model_len,
    )


def test_a_real_checkpoint_continues_as_transformers_does(
    tiny_moe_dir: Path, tiny_moe_oracle: Oracle
) -> None:
    rng = random.Random(2)
    runner = real_runner(tiny_moe_dir)
    sampling = SamplingParams(max_tokens=10, seed=0, temperature=0)
    lives = [
        Life(
            f"r{i}",
            i,
            range(4 * i - 3, 4 * i + 1),
            [rng.randrange(NUM_REAL_TOKENS) for _ in range(length)],
            sampling,
        )
        for i, length in ((1, 3), (2, 64), (3, 150))
    ]
    run_all(runner, lives)
    for life in lives:
        prompt = life.ids[: life.num_prompt]
        assert life.output == tiny_moe_oracle.greedy(prompt, 10, NUM_REAL_TOKENS)
    runner.stop()
