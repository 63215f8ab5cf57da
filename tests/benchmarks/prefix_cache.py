"""What the prefix cache saves: the demo model with it and without it, asked in turn.

    python -m tests.benchmarks.prefix_cache [--rounds 7]

Two servers run side by side, one of them with `--no-prefix-cache`; only one is asked at a time.
Each round asks both the same, in new words, so that nothing is found but what the scene itself
repeats. Times are those of a client: to the first chunk of a stream, or of the whole answer.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tests.e2e.live import LiveServer, live_server

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "rests")


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def first_chunk_s(server: LiveServer, messages: list[dict[str, str]]) -> tuple[float, str]:
    """Seconds to the first chunk, and the answer."""
    body = {"messages": messages, "stream": True, "max_tokens": 48, "temperature": 0}
    said = ""
    began = time.perf_counter()
    took = 0.0
    with server.http.stream("POST", "/v1/chat/completions", json=body, timeout=120) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                took = took or time.perf_counter() - began
                delta = json.loads(line[6:])["choices"][0]["delta"]
                said += delta.get("content") or ""
    return took, said


def conversation(server: LiveServer, rng: random.Random) -> float:
    """A system prompt and six questions of a conversation, each answered before the next."""
    messages = [{"role": "system", "content": words(rng, 800)}]
    took: list[float] = []
    for _ in range(6):
        messages.append({"role": "user", "content": words(rng, 60)})
        seconds, said = first_chunk_s(server, messages)
        took.append(seconds)
        messages.append({"role": "assistant", "content": said or "Yes."})
    return median(took[1:])


def system_prompt(server: LiveServer, rng: random.Random) -> float:
    """Six people ask under the same system prompt, one after the other."""
    system = {"role": "system", "content": words(rng, 1500)}
    took = [
        first_chunk_s(server, [system, {"role": "user", "content": words(rng, 30)}])[0]
        for _ in range(6)
    ]
    return median(took[1:])


def choices(server: LiveServer, rng: random.Random) -> float:
    """Eight choices of 16 tokens for one prompt."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": words(rng, 1500)}],
        "n": 8,
        "max_tokens": 16,
        "seed": 1,
    }
    began = time.perf_counter()
    response = server.post("/v1/chat/completions", body, timeout=300)
    assert response.status_code == 200, response.text
    return time.perf_counter() - began


def unshared(server: LiveServer, rng: random.Random) -> float:
    """Prompts that have nothing in common: what looking up and saving costs."""
    took = [
        first_chunk_s(server, [{"role": "user", "content": words(rng, 1500)}])[0] for _ in range(3)
    ]
    return median(took)


SCENES: dict[str, Callable[[LiveServer, random.Random], float]] = {
    "first chunk of a later turn": conversation,
    "first chunk under a shared system prompt": system_prompt,
    "eight choices of one prompt, whole": choices,
    "first chunk of a prompt nobody shares": unshared,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="prefix-cache-"))
    with (
        live_server(folder / "with.log") as with_cache,
        live_server(folder / "without.log", "--no-prefix-cache") as without,
    ):
        print(f"{'scene':45}{'with, ms':>12}{'without, ms':>14}{'ratio':>8}  [least to most]")
        for name, scene in SCENES.items():
            pairs: list[tuple[float, float]] = []
            for round_ in range(rounds + 1):
                both = [
                    scene(server, random.Random(f"{name} {round_}"))
                    for server in (with_cache, without)
                ]
                if round_:  # the first warms up
                    pairs.append((both[0], both[1]))
            ours, theirs = (median(side) * 1e3 for side in zip(*pairs, strict=True))
            ratios = sorted(b / a for a, b in pairs)
            print(
                f"{name:45}{ours:12.0f}{theirs:14.0f}{median(ratios):7.1f}x"
                f"  [{ratios[0]:.1f} to {ratios[-1]:.1f}]"
            )


if __name__ == "__main__":
    main()
