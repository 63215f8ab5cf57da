"""bf16 as a GPU has it, in Triton's interpreter, which keeps it as bits.

Its `tl.dot` multiplies these bits as integers, knows no product in three parts of bf16, and cuts
off where numbers become bf16 instead of rounding to the nearest.
"""

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

PRECISIONS = ("tf32", "tf32x3", "ieee", "bf16x3")

_create_dot = InterpreterBuilder.create_dot
_convert_float = interpreter._convert_float


def interpret_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterBuilder, "create_dot", _dot)
    monkeypatch.setattr(interpreter, "_convert_float", _convert)
    options = InterpreterOptions(allowed_dot_input_precisions=PRECISIONS)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)


def _dot(builder, a, b, d, precision, most_imprecise):
    return _create_dot(builder, _in_fp32(a), _in_fp32(b), d, precision, most_imprecise)


def _in_fp32(x: TensorHandle) -> TensorHandle:
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle(widened(x.data).view(np.float32), tl.float32)


def _convert(data, source, target, rounding_mode):
    if (source, target) == (tl.bfloat16, tl.float32):
        return widened(data)
    if (source, target) == (tl.float32, tl.bfloat16):
        return rounded(data)
    return _convert_float(data, source, target, rounding_mode)


def widened(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.uint16).astype(np.uint32) << 16


def rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest, and to the even one of two; what is not a number stays none."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16)
