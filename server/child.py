"""Work for a child process, which is killed when it takes too long.

A thread cannot be stopped, and what clients send can keep a compiler or a decoder busy for ever. So
that work is done by a module of ours in a process of its own: it says that it is ready, answers
frames from standard input on standard output, and ends when its input does, so that it never
outlives the server. A frame is a length of four bytes and a msgpack body.
"""

import contextlib
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import msgspec

START_LIMIT_S = 60.0  # of a child, which imports little: a busy machine's worst

_ROOT = Path(__file__).resolve().parents[1]
_LENGTH = struct.Struct("<I")

T = TypeVar("T")
ReadFrame = Callable[[], bytes | None]


def write_frame(stream: IO[bytes], message: object) -> None:
    body = msgspec.msgpack.encode(message)
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next body; None at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None


def command(module: str) -> tuple[str, ...]:
    """What runs the `main` of a module of ours."""
    # Not `-m`: that looks for `server` in the user's working directory first.
    path = f"import sys; sys.path.insert(0, {str(_ROOT)!r})"
    return (sys.executable, "-P", "-c", f"{path}; from {module} import main; main()")


class Child:
    """Belongs to one thread at a time, but for `kill`, `close` and `stop`.

    It starts when it is first needed, and again after it was killed.
    """

    def __init__(self, module: str) -> None:
        self._command = command(module)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False  # it has said so
        self._is_closed = False
        self.is_late = False  # its time was up

    def start(self) -> None:
        self._running()

    def kill(self) -> None:
        """End what it does; whoever waits for that learns so."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End it for good; one that is being started ends too. `stop` has to follow."""
        self._is_closed = True
        self.kill()

    def stop(self) -> None:
        """End it, and leave nothing of it behind."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # of what was left to write
                        stream.close()

    def ask(
        self, message: msgspec.Struct, limit_s: float, take: Callable[[ReadFrame], T | None]
    ) -> T | None:
        """What `take` makes of the frames that answer `message`; it may raise.

        None: it took too long (`is_late`), or the child died, or `take` said so; it is ended then.
        """
        process = self._running()
        if not self._is_ready:
            self._is_ready = self._within(START_LIMIT_S, process, None, _frame) is not None
        answer = self._within(limit_s, process, message, take) if self._is_ready else None
        if answer is None:
            self.stop()
        return answer

    def _within(
        self,
        limit_s: float,
        process: "subprocess.Popen[bytes]",
        message: msgspec.Struct | None,
        take: Callable[[ReadFrame], T | None],
    ) -> T | None:
        """What comes by itself or in answer to `message`; it is killed when the time is up."""
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def end() -> None:
            self.is_late = True
            process.kill()

        def read() -> bytes | None:
            try:
                return read_frame(stdout)
            except ValueError:  # closed by `stop`
                return None

        self.is_late = False
        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            if message is not None:
                try:
                    write_frame(stdin, message)
                except (BrokenPipeError, ValueError):  # killed, or closed by `stop`
                    return None
            return take(read)
        finally:
            timer.cancel()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._is_ready = False
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # would quote the client
            )
            if self._is_closed:
                self._process.kill()
        return self._process


def _frame(read: ReadFrame) -> bytes | None:
    return read()
