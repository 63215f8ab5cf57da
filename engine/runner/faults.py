"""Which errors say that the device is lost: nothing it is asked afterwards can succeed.

A fault poisons the CUDA context of its process. Who meets it first says it in words of its own:
torch as an AcceleratorError, Triton and cuBLAS as a RuntimeError with the driver's text in it.
What ran out, or was asked in a way that cannot be, is an error of its step alone: that of torch's
own memory on the device has a class, that of pinned memory is an AcceleratorError like a fault.
"""

import torch

_TRITON = "Triton Error [CUDA]: "
_OUT_OF_MEMORY = "out of memory"
_CUBLAS_FAULTS = (  # the other states are of memory, or of what was asked
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_MAPPING_ERROR",
)


def is_device_lost(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    if isinstance(error, torch.AcceleratorError) or _TRITON in text:
        return _OUT_OF_MEMORY not in text
    return any(fault in text for fault in _CUBLAS_FAULTS)
