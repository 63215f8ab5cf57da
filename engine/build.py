"""From a configuration to a model that is ready to step: the engine process's start-up."""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from engine.client import EngineInfo
from engine.config import EngineConfig, ModelConfig
from engine.grammar import GrammarCompiler, GrammarRows, Vocabulary
from engine.host_memory import available_bytes
from engine.memory_plan import plan_memory
from engine.model.weights import load_model, resolve_dtype
from engine.runner.runner import Runner
from engine.runner.tensors import allocate_caches
from engine.worker import Built
from engine.worker import main as run_worker
from kernels.cpu_build import build_all


def main() -> None:
    """The engine process. Only this process ever imports torch."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    run_worker(build)


def build(config: EngineConfig) -> Built:
    """Load the weights, size the caches by arithmetic, allocate them. Raises ValueError."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    build_all()  # now, not in the first request
    model_dir = Path(config.model_dir)
    model_config = ModelConfig.from_dir(model_dir)
    dtype = resolve_dtype(config.dtype, model_config)
    with ThreadPoolExecutor(1) as beside:  # a quarter of a million tokens take a second to read
        vocabulary = beside.submit(_read_vocabulary, config, model_config)
        loaded = load_model(model_dir, model_config, config.dtype)
    memory = plan_memory(
        model_config, config, dtype_bytes=dtype.itemsize, available_bytes=available_bytes()
    )
    caches = allocate_caches(model_config, memory, dtype=dtype)
    runner = Runner(
        loaded.model,
        caches,
        num_slots=memory.num_slots + 1,
        num_real_tokens=min(config.num_real_tokens, model_config.vocab_size),
        grammars=_make_grammars(vocabulary.result(), num_slots=memory.num_slots + 1),
    )
    return Built(
        runner=runner,
        memory=memory,
        num_real_tokens=min(config.num_real_tokens, model_config.vocab_size),
        info=EngineInfo(
            pid=os.getpid(),
            architecture=model_config.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=f"cpu, {torch.get_num_threads()} threads",
            num_parameters=loaded.num_parameters,
            weight_bytes=loaded.weight_bytes,
            load_s=loaded.load_s,
            max_model_len=memory.max_model_len,
            max_num_seqs=memory.max_num_seqs,
            max_step_tokens=memory.max_step_tokens,
            num_pages=memory.num_pages,
            num_slots=memory.num_slots,
            cache_bytes=(memory.num_pages + 1) * memory.page_bytes
            + (memory.num_slots + 1) * memory.slot_bytes,
            warnings=memory.warnings,
        ),
    )


def _read_vocabulary(config: EngineConfig, model_config: ModelConfig) -> Vocabulary | None:
    if not config.eos_token_ids:
        return None
    return Vocabulary.from_dir(
        Path(config.model_dir), num_rows=model_config.vocab_size, eos_ids=config.eos_token_ids
    )


def _make_grammars(vocabulary: Vocabulary | None, *, num_slots: int) -> GrammarRows | None:
    if vocabulary is None:
        return None
    return GrammarRows(GrammarCompiler(vocabulary), num_slots=num_slots)
