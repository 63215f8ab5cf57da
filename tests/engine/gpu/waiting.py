"""Steps during which torch itself watches that the host does not wait for the GPU."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def host_must_not_wait() -> Generator[None]:
    """What would synchronise raises, in any thread."""
    try:
        _set("error")
        yield
    finally:
        _set("default")


def _set(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it sees most of what waits, not all
        torch.cuda.set_sync_debug_mode(mode)
