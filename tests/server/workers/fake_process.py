"""A worker that answers no requests, but speaks to its parent: run as `python fake_process.py`.

Its model's name says how it behaves. It imports little, because tests start many.
"""

import os
import socket
import sys
import time
from typing import Any

import msgspec

CANNOT_START = "cannot start"
DIES = "dies once it is ready"
HANGS = "never answers"
STUBBORN = "does not drain"
BABBLES = "says what is no message"
WELL = "well"


class Line:
    def __init__(self, fd: int) -> None:
        self._line = socket.socket(fileno=fd)
        self._stream = self._line.makefile("rb")

    def send(self, **message: Any) -> None:
        self.send_body(msgspec.msgpack.encode(message))

    def send_body(self, body: bytes) -> None:
        self._line.sendall(len(body).to_bytes(4, "little") + body)

    def read(self) -> dict[str, Any]:
        head = self._stream.read(4)
        if not head:
            os._exit(0)
        return msgspec.msgpack.decode(self._stream.read(int.from_bytes(head, "little")))


def main() -> None:
    line = Line(int(sys.argv[1]))
    kind = line.read()["settings"]["model_root"]
    if kind == CANNOT_START:
        sys.exit(3)
    line.send(type="Listening")
    num_asked = 0
    while True:
        message = line.read()
        match message["type"]:
            case "EngineStarted":
                line.send(type="Ready", address=message["address"])
                if kind == DIES:
                    sys.exit(4)
                if kind == BABBLES:
                    line.send_body(b"\xc0")
                if kind == HANGS:
                    time.sleep(600)
            case "AskMetrics":
                num_asked += 1
                sample = ("asked_total", (("model_name", "m"),), num_asked)
                family = ("asked", "counter", "Asked", (sample,))
                line.send(type="MetricsReport", families=(family,))
            case "Drain" if kind != STUBBORN:
                sys.exit(0)
            case _:
                pass


if __name__ == "__main__":
    main()
