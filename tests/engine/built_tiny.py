"""Tiny checkpoints, built as the engine process builds them, on a GPU or on the CPU."""

from pathlib import Path

from engine.build import build
from engine.config import EngineConfig
from engine.runner.runner import Runner
from engine.worker import Built, warm_up
from tests.checkpoints import NUM_REAL_TOKENS

NUM_SEQS = 16
MAX_LEN = 1024


def build_tiny(
    folder: Path,
    dtype: str,
    *,
    device: str = "cuda",
    enforce_eager: bool = False,
    deterministic: bool = False,
    eos_token_ids: tuple[int, ...] = (),
) -> Built:
    """Warmed up; on a GPU with all graphs, unless `enforce_eager`.

    With `eos_token_ids` it serves grammars, and `folder` has a tokenizer.
    """
    built = build(
        EngineConfig(
            model_dir=str(folder),
            num_real_tokens=NUM_REAL_TOKENS,
            dtype=dtype,
            device=device,
            enforce_eager=enforce_eager,
            deterministic=deterministic,
            max_model_len=MAX_LEN,
            max_num_seqs=NUM_SEQS,
            max_step_tokens=MAX_LEN,
            cache_bytes=64 << 20,
            eos_token_ids=eos_token_ids,
        )
    )
    warm_up(built)
    runner = built.runner
    assert isinstance(runner, Runner)
    built.on_ready()
    runner.wait_for_captures()
    return built
