"""Orders to stop, from signals or from a parent process.

The first one is to drain; a second one, to end at once.
"""

import asyncio
import contextlib
import signal
from collections.abc import Generator


class StopOrders:
    def __init__(self) -> None:
        self.num_received = 0
        self.last_signal = 0
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def give(self, kind: int = 0) -> None:
        """Take one more order; `kind` is the signal that it is, or 0."""
        self.num_received += 1
        self.last_signal = kind
        (self.first if self.num_received == 1 else self.second).set()

    @contextlib.contextmanager
    def from_signals(self) -> Generator[None, None, None]:
        """Inside, SIGTERM and SIGINT are orders."""
        loop = asyncio.get_running_loop()
        kinds = (signal.SIGTERM, signal.SIGINT)
        for kind in kinds:
            loop.add_signal_handler(kind, self.give, kind)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)
