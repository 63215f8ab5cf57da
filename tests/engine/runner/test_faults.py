"""Which errors of a step say that its device is lost."""

from concurrent.futures import Future

import pytest
import torch

from engine.plan import DeviceLost
from engine.runner.answer import Answer
from engine.runner.faults import is_device_lost
from engine.runner.runner import LaunchedStep

LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul(...)`"),
]
OF_ONE_STEP = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`"),
    RuntimeError("shape '[3, 4]' is invalid for input of size 11"),
    MemoryError(),
    KeyError("Triton Error [CUDA]: unspecified launch failure"),
]


def raised_by(error: Exception) -> Exception:
    begun: Future[Answer] = Future()
    begun.set_exception(error)
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one is what is asked
        LaunchedStep(begun).result()
    return raised.value


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_fault_of_the_device_is_its_end(error: Exception) -> None:
    assert is_device_lost(error)
    lost = raised_by(error)
    assert isinstance(lost, DeviceLost)
    assert str(lost) == str(error)
    assert lost.__cause__ is error


@pytest.mark.parametrize("error", OF_ONE_STEP, ids=repr)
def test_what_another_step_may_not_meet_is_not(error: Exception) -> None:
    assert not is_device_lost(error)
    assert raised_by(error) is error
