"""Matrix products whose elements do not know their place, for bit-equality under the interpreter.

The interpreter multiplies tiles with numpy, whose BLAS adds in another order near the edges of a
tile. A GPU's matrix instructions do not.
"""

import numpy as np
import pytest
import torch


@pytest.fixture
def even_products(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(np, "matmul", _even_matmul)


def _even_matmul(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The sum over k is the middle axis': slice after slice."""
    return (a.astype(dtype)[:, :, None] * b.astype(dtype)[None]).sum(axis=1)
