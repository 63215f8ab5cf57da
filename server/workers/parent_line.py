"""A worker's line to its parent, and its lifeline: when it closes, the process ends at once.

A thread reads, so that even a worker whose loop is stuck ends with its parent. `call` blocks its
thread for an answer; everything else that comes goes to the loop.
"""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count

from server.workers.messages import (
    LENGTH,
    Answer,
    Ask,
    Call,
    Result,
    Start,
    ToParent,
    ToWorker,
    decode_to_worker,
    frame,
)


class ParentLine:
    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._numbers = count()
        self._waiting: dict[int, Future[Result]] = {}
        self._sending = threading.Lock()

    def read_start(self) -> Start:
        start = self._read()
        assert isinstance(start, Start)
        return start

    def attach(self, loop: asyncio.AbstractEventLoop, receive: Callable[[ToWorker], None]) -> None:
        """From here on `receive` is called on `loop` with what comes, but for answers to calls."""
        arguments = (loop, receive)
        threading.Thread(target=self._read_on, args=arguments, daemon=True, name="parent").start()

    def send(self, message: ToParent) -> None:
        data = frame(message)
        with self._sending, contextlib.suppress(OSError):  # then the reader ends the process
            self._line.sendall(data)

    def call(self, ask: Ask) -> Result:
        """Ask the parent, and wait for the answer. Not to be called on the loop."""
        number = next(self._numbers)
        future = self._waiting[number] = Future()
        self.send(Call(number, ask))
        return future.result()

    def _read_on(
        self, loop: asyncio.AbstractEventLoop, receive: Callable[[ToWorker], None]
    ) -> None:
        while True:
            message = self._read()
            if isinstance(message, Answer):
                self._waiting.pop(message.number).set_result(message.result)
            else:
                loop.call_soon_threadsafe(receive, message)

    def _read(self) -> ToWorker:
        (length,) = LENGTH.unpack(self._read_exactly(LENGTH.size))
        return decode_to_worker(self._read_exactly(length))

    def _read_exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            num_read = self._line.recv_into(rest)
            if not num_read:
                os._exit(0)  # the parent is gone
            rest = rest[num_read:]
        return data
