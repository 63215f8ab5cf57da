"""From a configuration to a model that is ready to step: the engine process's start-up.

Which device it runs on is settled here, and nowhere else: what differs is how much memory there is,
and what stands behind the runner's `Device`.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch

from engine.client import EngineInfo
from engine.config import EngineConfig, MemoryPlan, ModelConfig
from engine.device_memory import plan_gpu_memory
from engine.grammar import GrammarCompiler, GrammarRows, Vocabulary
from engine.host_memory import available_bytes
from engine.log import start_log
from engine.memory_plan import plan_memory
from engine.model.weights import LoadedModel, load_model, resolve_dtype
from engine.plan import PAGE_TOKENS
from engine.runner.cuda import CudaDevice
from engine.runner.device import CpuDevice
from engine.runner.kinds import SIZES, every_kind
from engine.runner.runner import Runner
from engine.runner.tensors import allocate_caches
from engine.worker import Built
from engine.worker import main as run_worker
from kernels.cpu_build import build_all
from kernels.devices import TARGETS


def main() -> None:
    """The engine process. Only this process ever imports torch."""
    start_log(logging.INFO)
    run_worker(build)


def build(config: EngineConfig) -> Built:
    """Load the weights, size the caches by arithmetic, allocate them. Raises ValueError."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device, warnings = choose_device(config.device, captures=not config.enforce_eager)
    if isinstance(device, CpuDevice):
        build_all()  # now, not in the first request
    model_dir = Path(config.model_dir)
    model_config = ModelConfig.from_dir(model_dir)
    dtype = resolve_dtype(config.dtype, model_config)
    with ThreadPoolExecutor(1) as beside:  # a quarter of a million tokens take a second to read
        vocabulary = beside.submit(_read_vocabulary, config, model_config)
        loaded = load_model(
            model_dir,
            model_config,
            config.dtype,
            device=device.torch_device,
            language_model_only=config.language_model_only,
        )
    if loaded.tower is None:
        model_config = msgspec.structs.replace(model_config, vision=None)
    memory = _plan_memory(config, model_config, loaded, dtype, device)
    grammars = _make_grammars(vocabulary.result(), num_slots=memory.num_slots + 1)
    runner = Runner(
        loaded.model,
        allocate_caches(model_config, memory, dtype=dtype, device=device.torch_device),
        num_slots=memory.num_slots + 1,
        num_real_tokens=min(config.num_real_tokens, model_config.vocab_size),
        max_step_tokens=memory.max_step_tokens,
        max_model_len=memory.max_model_len,
        device=device,
        grammars=grammars,
        tower=loaded.tower,
        fixes_shapes=config.deterministic,
    )
    on_cpu = isinstance(device, CpuDevice)
    return Built(
        runner=runner,
        memory=memory,
        num_real_tokens=min(config.num_real_tokens, model_config.vocab_size),
        # A GPU's kernels are compiled when they first run, and those of a full step are others.
        warm_up_tokens=PAGE_TOKENS + 1 if on_cpu else memory.max_step_tokens,
        warm_up_sizes=() if on_cpu else SIZES,
        warm_up_kinds=() if on_cpu else every_kind(has_grammars=grammars is not None),
        on_ready=runner.begin_captures,
        progress=lambda: runner.progress,
        grammars=grammars,
        info=EngineInfo(
            pid=os.getpid(),
            architecture=model_config.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=f"cpu, {torch.get_num_threads()} threads" if on_cpu else device.name,
            num_parameters=loaded.num_parameters,
            weight_bytes=loaded.weight_bytes,
            load_s=loaded.load_s,
            max_model_len=memory.max_model_len,
            max_num_seqs=memory.max_num_seqs,
            max_step_tokens=memory.max_step_tokens,
            num_pages=memory.num_pages,
            num_slots=memory.num_slots,
            num_saved_slots=memory.num_saved_slots,
            cache_bytes=(memory.num_pages + 1) * memory.page_bytes
            + (memory.num_slots + memory.num_saved_slots + 1) * memory.slot_bytes,
            serves_media=loaded.tower is not None,
            warnings=(*warnings, *memory.warnings),
        ),
    )


def choose_device(name: str, *, captures: bool) -> tuple[CpuDevice | CudaDevice, tuple[str, ...]]:
    """The device that `name` (auto, cpu, cuda) stands for here, and what is to be said about it.

    `captures`: a GPU's steps become graphs. Raises ValueError.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name} is not one of auto, cpu, cuda")
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise ValueError("device cuda: torch finds no CUDA device it can use")
        return CpuDevice(), ()
    major, minor = torch.cuda.get_device_capability(0)
    least = min(target.capability for target in TARGETS)
    if 10 * major + minor >= least:
        return CudaDevice(captures=captures), ()
    gpu, needed = torch.cuda.get_device_name(0), f"{least // 10}.{least % 10}"
    has = f"has compute capability {major}.{minor}, and {needed} or more is needed"
    if name == "cuda":
        raise ValueError(f"device cuda: {gpu} {has}")
    return CpuDevice(), (f"{gpu} is not used: it {has}; serving on the CPU",)


def _plan_memory(
    config: EngineConfig,
    model_config: ModelConfig,
    loaded: LoadedModel,
    dtype: torch.dtype,
    device: CpuDevice | CudaDevice,
) -> MemoryPlan:
    if isinstance(device, CpuDevice):
        return plan_memory(
            model_config, config, dtype_bytes=dtype.itemsize, available_bytes=available_bytes()
        )
    free_bytes, total_bytes = device.free_and_total_bytes()
    return plan_gpu_memory(
        model_config,
        config,
        dtype_bytes=dtype.itemsize,
        weight_bytes=loaded.weight_bytes,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
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
