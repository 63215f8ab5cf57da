"""What one client may send, ask for, hold and take: every bound that an operator may set.

A name says what is bounded and in what unit (`_s` seconds, `_bytes` bytes); its `Bound` says the
rest. `--limit NAME=VALUE` sets one, and `deltaserve limits` lists them. What breaks one is refused
before anything large is allocated for it.

Not here: what the wire or the model fixes (`seed` is an int64, a token id lies in the vocabulary,
`top_p` is a share), and what has a flag of its own (the window, the queue, the time-outs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Bound:
    """What a limit means, and the least and the most that it may be."""

    what: str
    least: float
    most: float


def _bound(default: float, what: str, *, least: float = 1, most: float = 2**31 - 1) -> Any:
    return field(default=default, metadata={"bound": Bound(what, least, most)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    # HTTP
    max_head_bytes: int = _bound(64 << 10, "request line and headers", least=1024, most=16 << 20)
    max_headers: int = _bound(256, "headers of a request")
    max_body_bytes: int = _bound(64 << 20, "body of a request", most=2 << 30)
    head_timeout_s: float = _bound(10.0, "for the headers to arrive", least=0.1, most=3600)
    body_pause_s: float = _bound(30.0, "pause inside a body", least=0.1, most=3600)
    keep_alive_s: int = _bound(30, "connection between two requests", most=3600)
    max_connections: int = _bound(4096, "open connections", most=1 << 20)
    request_timeout_s: float = 600.0  # has a flag
    # What readers leave unread
    send_stall_s: float = _bound(30.0, "reader that takes nothing", least=0.1, most=3600)
    max_unread_chunks: int = _bound(256, "chunks that wait for a reader; more are merged")
    max_unread_bytes: int = _bound(1 << 20, "the same, while it takes nothing", most=1 << 30)
    max_background: int = _bound(256, "background responses that run", least=0)
    # Requests
    max_json_depth: int = _bound(128, "levels of the JSON of a request", most=400)
    max_chars_per_token: int = _bound(16, "characters of a prompt per token of the window")
    max_messages: int = _bound(4096, "messages of a chat")
    max_prompts: int = _bound(128, "prompts of a completion request", most=4096)
    max_choices: int = _bound(16, "`n` and `best_of`", most=256)
    max_temperature: float = _bound(2.0, "`temperature`", least=0, most=100)
    max_penalty: float = _bound(2.0, "presence and frequency penalty, above and below 0", most=100)
    max_logprobs: int = _bound(
        20, "`top_logprobs`, `logprobs` and `prompt_logprobs`", least=0, most=100
    )
    max_logit_bias: int = _bound(1024, "entries of `logit_bias`", least=0, most=1 << 18)
    max_stops: int = _bound(16, "strings of `stop`", most=1024)
    max_tools: int = _bound(128, "tools of a request", most=4096)
    max_tool_name_chars: int = _bound(64, "name of a function", most=256)
    # Structured output
    max_schema_bytes: int = _bound(256 << 10, "schema, regex or grammar", most=4 << 20)
    max_schema_depth: int = _bound(64, "schemas inside each other", most=64)
    max_schema_properties: int = _bound(2000, "properties of a schema", most=20_000)
    max_enum_values: int = _bound(10_000, "enum values of a schema, and choices", most=100_000)
    max_schema_steps: int = _bound(
        30_000, "parts of schemas to read, each time they are referred to", most=1_000_000
    )
    max_repeat: int = _bound(10_000, "a length, or the bound of a repetition", most=10_000)
    compile_timeout_s: float = _bound(5.0, "for a grammar to compile", least=0.1, most=60)
    # Images and videos
    max_images: int = _bound(64, "images of a request", least=0, most=4096)
    max_videos: int = _bound(4, "videos of a request", least=0, most=64)
    max_image_bytes: int = _bound(32 << 20, "one image as it is sent", most=256 << 20)
    max_image_pixels: int = _bound(36_000_000, "one image or video frame", most=89_000_000)
    min_image_side: int = _bound(2, "pixels of a side", most=1024)
    max_image_aspect: int = _bound(200, "times that a side is longer than the other", most=200)
    max_video_bytes: int = _bound(64 << 20, "one video as it is sent", most=1 << 30)
    max_video_frames: int = _bound(768, "frames of a video that are looked at", most=768)
    max_video_pixels: int = _bound(512_000_000, "those frames together", most=2_000_000_000)
    fetch_timeout_s: float = _bound(10.0, "for a download, redirects included", least=0.1, most=600)
    max_redirects: int = _bound(3, "redirects of a download", least=0, most=20)

    def shared_by(self, num_processes: int) -> "Limits":
        """One process's part: what is counted is bounded for the server, not for each process."""
        return replace(
            self,
            max_connections=max(1, self.max_connections // num_processes),
            max_background=self.max_background // num_processes,
        )


DEFAULT_LIMITS = Limits()


def value_of(limits: Limits, name: str) -> float:
    """The value of a limit that is known by its name only."""
    assert name in BOUNDS, name
    return getattr(limits, name)


BOUNDS: Mapping[str, Bound] = {
    one.name: one.metadata["bound"] for one in fields(Limits) if "bound" in one.metadata
}  # what `--limit` takes, in order
