import pytest
import torch


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _outputs_born_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write must show: fresh memory is NaN, not yesterday's zeros."""
    empty = torch.empty

    def empty_nan(*size: object, **kwargs: object) -> torch.Tensor:
        fresh = empty(*size, **kwargs)  # type: ignore[call-overload]
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch, "empty", empty_nan)
