"""Decode speed on CPU beside transformers' `generate()`, on the same random weights, in one run.

    python -m tests.benchmarks.cpu_vs_transformers [--dtype float32] [--repeats 5]

The model is a ~40 M parameter Qwen3.5 MoE (8 layers, hidden 512, 32 experts, top 8). Ours runs as
it is served: in its own process, through the socket, with the overlapped loop. transformers runs in
this process, with its default attention and experts, and no server at all. Both use torch's default
number of threads, and never run at the same time. Each repeat times both, one after the other; the
figures are medians, and min to max in brackets.

- decode: tokens per second of one stream after its first token;
- 8 requests: all output tokens over the time from the first submit to the last token, prefill of
  the 64-token prompts included. transformers gets the best it has: one batch of eight equal-length
  prompts. Its other way, one request after the other, is printed too.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.process import EngineProcess
from engine.request import Request, SamplingParams
from tests.checkpoints import build_checkpoint

NUM_PROMPT = 64
NUM_OUTPUT = 128
NUM_REQUESTS = 8
VOCAB = 8192


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCAB, (NUM_REQUESTS, NUM_PROMPT), generator=generator).tolist()


async def our_decode(engine: EngineProcess, name: str) -> float:
    """Tokens per second of one stream after its first token."""
    times: list[float] = []
    async for _ in engine.link.submit(_request(name, prompts()[0])):
        times.append(time.perf_counter())
    return (NUM_OUTPUT - 1) / (times[-1] - times[0])


async def our_aggregate(engine: EngineProcess, name: str) -> float:
    """Output tokens per second of all requests together."""

    async def drain(index: int, prompt: list[int]) -> int:
        deltas = [delta async for delta in engine.link.submit(_request(f"{name}-{index}", prompt))]
        return sum(len(delta.token_ids) for delta in deltas)

    began = time.perf_counter()
    counts = await asyncio.gather(*(drain(i, prompt) for i, prompt in enumerate(prompts())))
    assert counts == [NUM_OUTPUT] * NUM_REQUESTS
    return sum(counts) / (time.perf_counter() - began)


def _request(name: str, prompt: list[int]) -> Request:
    sampling = SamplingParams(max_tokens=NUM_OUTPUT, seed=0, temperature=0.0)
    return Request(id=name, prompt_ids=tuple(prompt), sampling=sampling)


def their_decode(model: Any) -> float:
    """Time of a long generation less the time of a one-token one."""
    ids = torch.tensor(prompts()[:1])
    first_s = _generate_s(model, ids, 1)
    return (NUM_OUTPUT - 1) / (_generate_s(model, ids, NUM_OUTPUT) - first_s)


def their_batch(model: Any) -> float:
    return NUM_REQUESTS * NUM_OUTPUT / _generate_s(model, torch.tensor(prompts()), NUM_OUTPUT)


def their_sequence(model: Any) -> float:
    """One request after the other; four stand for eight, as each costs the same."""
    half = prompts()[: NUM_REQUESTS // 2]
    total_s = sum(_generate_s(model, torch.tensor([prompt]), NUM_OUTPUT) for prompt in half)
    return len(half) * NUM_OUTPUT / total_s


def _generate_s(model: Any, ids: torch.Tensor, num_tokens: int) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    assert output.shape == (len(ids), ids.shape[1] + num_tokens)
    return time.perf_counter() - began


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(
            Path(folder),
            moe=True,
            vocab_size=VOCAB,
            hidden_size=512,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
            linear_num_key_heads=4,
            linear_num_value_heads=8,
            linear_key_head_dim=64,
            linear_value_head_dim=64,
            num_experts=32,
            num_experts_per_tok=8,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=64,
            rope={"mrope_section": [3, 3, 2]},
            eos_token_id=VOCAB - 1,
        )
        from transformers import Qwen3_5MoeForCausalLM

        theirs = Qwen3_5MoeForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, arguments.dtype)
        ).eval()
        config = EngineConfig(
            model_dir=folder,
            num_real_tokens=VOCAB,
            dtype=arguments.dtype,
            max_model_len=1024,
            max_num_seqs=NUM_REQUESTS,
            cache_bytes=256 << 20,
        )
        engine = EngineProcess(config)
        info = await engine.start()
        print(
            f"{info.num_parameters / 1e6:.1f} M parameters, {arguments.dtype}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        figures: dict[str, list[float]] = {}

        def note(name: str, rate: float) -> None:
            figures.setdefault(name, []).append(rate)

        measures: list[tuple[str, Callable[[Any], float]]] = [
            ("their decode", their_decode),
            ("their batch", their_batch),
            ("their sequence", their_sequence),
        ]
        try:
            for _, measure in measures:
                measure(theirs)  # warm
            for repeat in range(arguments.repeats):
                note("our decode", await our_decode(engine, f"d{repeat}"))
                note(measures[0][0], await asyncio.to_thread(measures[0][1], theirs))
                note("our aggregate", await our_aggregate(engine, f"a{repeat}"))
                for name, measure in measures[1:]:
                    note(name, await asyncio.to_thread(measure, theirs))
        finally:
            await engine.stop()
    report(figures)


def report(figures: dict[str, list[float]]) -> None:
    def row(title: str, ours: str, theirs: str) -> None:
        ratios = [a / b for a, b in zip(figures[ours], figures[theirs], strict=True)]
        cells = [
            f"{statistics.median(values):8.1f} [{min(values):.1f} to {max(values):.1f}]"
            for values in (figures[ours], figures[theirs])
        ]
        ratio = f"{statistics.median(ratios):.2f}x [{min(ratios):.2f} to {max(ratios):.2f}]"
        print(f"{title:34} {cells[0]:30} {cells[1]:30} {ratio}")

    print(f"{'tokens per second':34} {'deltaserve':30} {'transformers':30} ratio")
    row("decode, one stream", "our decode", "their decode")
    row("8 requests, batched generate()", "our aggregate", "their batch")
    row("8 requests, one after the other", "our aggregate", "their sequence")


if __name__ == "__main__":
    asyncio.run(main())
