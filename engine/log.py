"""How server and engine processes write their log: one line each, on standard error.

Whoever takes these lines may be slow, or stop taking them: a pipe that is full, a disk that hangs.
So a thread of its own writes them, and nobody waits for it. Lines that find `MAX_LINES` before them
are dropped, and the next one that is not says how many.
"""

import contextlib
import logging
import os
import queue
import threading
import time

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_LINES = 10_000
FLUSH_S = 1.0

_STDERR = 2  # the descriptor: a stream's lock would be held while nobody takes the line


class _Lines(logging.Handler):
    """Takes records from any thread, and never blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: queue.Queue[str] = queue.Queue(MAX_LINES)
        self._num_dropped = 0
        self.setFormatter(logging.Formatter(LOG_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:  # under the handler's lock
        line = self.format(record)
        if self._num_dropped:
            line += f" ({self._num_dropped} lines before this one were not taken in time)"
        try:
            self.waiting.put_nowait(line + "\n")
            self._num_dropped = 0
        except queue.Full:
            self._num_dropped += 1

    def flush(self) -> None:
        """Give the writer a moment for the last lines, and no more; `logging` asks at exit."""
        deadline = time.monotonic() + FLUSH_S
        while self.waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.002)


def start_log(level: int) -> None:
    lines = _Lines()
    logging.basicConfig(level=level, handlers=[lines])
    threading.Thread(target=_write, args=(lines.waiting,), name="log", daemon=True).start()


def flush_log() -> None:
    """Have what was logged by now come before what is written past the log."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _write(waiting: "queue.Queue[str]") -> None:
    while True:
        line = waiting.get().encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # nobody is there to be told
            while line:
                line = line[os.write(_STDERR, line) :]
        waiting.task_done()
