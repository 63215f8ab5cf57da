"""Server-sent events as OpenAI clients read them: `data: {json}` and a blank line, no names.

JSON out of msgspec holds no line breaks, so one event is one line.
"""

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy must not collect events
)
DONE = b"data: [DONE]\n\n"


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"
