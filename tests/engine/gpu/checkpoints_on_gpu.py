"""Tiny checkpoints, built on the GPU as the engine process builds them."""

from pathlib import Path

from engine.build import build
from engine.config import EngineConfig
from engine.runner.runner import Runner
from engine.worker import Built, warm_up
from tests.checkpoints import NUM_REAL_TOKENS

NUM_SEQS = 16
MAX_LEN = 1024


def build_on_gpu(
    folder: Path, dtype: str, *, enforce_eager: bool = False, deterministic: bool = False
) -> Built:
    """Warmed up; with all graphs, unless `enforce_eager`."""
    built = build(
        EngineConfig(
            model_dir=str(folder),
            num_real_tokens=NUM_REAL_TOKENS,
            dtype=dtype,
            device="cuda",
            enforce_eager=enforce_eager,
            deterministic=deterministic,
            max_model_len=MAX_LEN,
            max_num_seqs=NUM_SEQS,
            max_step_tokens=MAX_LEN,
            cache_bytes=64 << 20,
        )
    )
    warm_up(built)
    runner = built.runner
    assert isinstance(runner, Runner)
    built.on_ready()
    runner.wait_for_captures()
    return built
