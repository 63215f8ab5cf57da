"""That the GPU tests' watch for waiting hosts begins, and ends, whatever torch says of it."""

import warnings

import pytest
import torch

from tests.engine.gpu.waiting import host_must_not_wait


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes that torch was given; like torch, this warns when it has set one."""
    modes: list[str] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    return modes


def test_a_warning_does_not_end_the_watch(modes: list[str]) -> None:
    with host_must_not_wait():
        assert modes == ["error"]
    assert modes == ["error", "default"]


def test_the_watch_ends_with_an_error(modes: list[str]) -> None:
    with pytest.raises(RuntimeError), host_must_not_wait():
        raise RuntimeError("called a synchronizing CUDA operation")
    assert modes == ["error", "default"]


def test_other_warnings_are_errors_as_ever(modes: list[str]) -> None:
    with pytest.raises(UserWarning, match="another"), host_must_not_wait():
        warnings.warn("another", stacklevel=1)
    assert modes == ["error", "default"]
