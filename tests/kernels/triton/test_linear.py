"""Linear layers in Triton against the reference, and bit for bit against themselves."""

from collections.abc import Callable
from copy import copy

import pytest
import torch

import kernels.linear
from kernels.backend import fixed_shapes, uses_triton
from kernels.launch import recording
from kernels.linear import reference
from tests.kernels.triton.even_products import even_products

__all__ = ["even_products"]

EPS = 1e-6
CASES = ((1, 2, 16), (17, 64), (65, 100), (257, 300))  # rows that take the same path
SHAPES = ((64, 48), (40, 33), (96, 16))  # D, F: even tiles, part tiles, one tile of columns
SPLIT_SHAPE = (1024, 40)  # few columns, deep: D in parts
# Sums of some hundred terms in fp32; one rounding more or less in a half.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


class Operands:
    def __init__(self, T: int, D: int, F: int, dtype: torch.dtype, device: torch.device) -> None:
        def matrix(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape) * scale).to(dtype).to(device)

        self.x_TD = 2 * matrix(T, D + 8)[:, 8:]  # a view, as slices of projections are
        self.hidden_TF = matrix(T, F)
        self.norm_D = matrix(D)
        self.weight_FD = matrix(F, D, scale=D**-0.5)
        self.gate_up_FD = matrix(2 * F, D, scale=D**-0.5)
        self.down_DF = matrix(D, F, scale=F**-0.5)

    def in_fp32(self) -> "Operands":
        """The same numbers: what the reference makes of them is rounded once, at its end."""
        same = copy(self)
        for name, tensor in vars(self).items():
            setattr(same, name, tensor.float())
        return same

    def calls(self, op: object) -> dict[str, Callable[[slice], torch.Tensor]]:
        x, norm = self.x_TD, self.norm_D
        return {
            "linear": lambda rows: op.linear(x[rows], self.weight_FD),
            "linear_fp32": lambda rows: op.linear_fp32(x[rows], self.weight_FD),
            "norm_linear": lambda rows: op.norm_linear(x[rows], norm, EPS, self.weight_FD),
            "linear_add": lambda rows: op.linear_add(self.hidden_TF[rows], self.down_DF, x[rows]),
            "norm_swiglu_add": lambda rows: op.norm_swiglu_add(
                x[rows], norm, EPS, self.gate_up_FD, self.down_DF
            ),
            "norm_swiglu": lambda rows: op.norm_swiglu_add(
                x[rows], norm, EPS, self.gate_up_FD, self.down_DF, adds_residual=False
            ),
        }


def means(operands: Operands, name: str, rounded: torch.dtype) -> torch.Tensor:
    exact = operands.in_fp32().calls(reference)[name](ALL)
    return exact if name == "linear_fp32" else exact.to(rounded)


ALL = slice(None)
NAMES = tuple(Operands(1, 16, 16, torch.float32, torch.device("cpu")).calls(reference))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = expected.double().abs().max().item()
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCE[dtype] * largest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("T", "D", "F"), [(T, *shape) for T in (1, 16, 63, 100) for shape in SHAPES] + [(300, 40, 33)]
)
def test_triton_means_the_reference(
    name: str, T: int, D: int, F: int, dtype: torch.dtype, device: torch.device
) -> None:
    operands = Operands(T, D, F, dtype, device)
    assert uses_triton(operands.x_TD)
    expected = means(operands, name, dtype)
    assert_close(operands.calls(kernels.linear)[name](ALL), expected, dtype)


@pytest.mark.parametrize("name", ["linear", "norm_linear", "linear_fp32"])
@pytest.mark.parametrize("T", [1, 16, 63])
def test_depth_in_parts(name: str, T: int, dtype: torch.dtype, device: torch.device) -> None:
    operands = Operands(T, *SPLIT_SHAPE, dtype, device)
    expected = means(operands, name, dtype)
    run = operands.calls(kernels.linear)[name]
    assert_close(run(ALL), expected, dtype)
    assert torch.equal(run(ALL), run(ALL))  # the counters were left as they were found


def test_depth_in_parts_with_a_residual(dtype: torch.dtype, device: torch.device) -> None:
    operands = Operands(9, 48, 1536, dtype, device)
    expected = means(operands, "linear_add", dtype)
    assert_close(operands.calls(kernels.linear)["linear_add"](ALL), expected, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(
    name: str,
    case: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    even_products: None,
) -> None:
    most = case[-1]
    run = Operands(most, 64, 48, dtype, device).calls(kernels.linear)[name]
    crowd = run(ALL)
    for rows in case[:-1]:
        few = slice(most - rows, None)  # other places in the tile, too
        assert torch.equal(run(few), crowd[few])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(64, 48), SPLIT_SHAPE], ids=str)
def test_with_fixed_shapes_a_row_has_the_same_bits_in_any_crowd(
    name: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    even_products: None,
) -> None:
    """Across all cases, and where rows with sums in parts are taken in pieces."""
    operands = Operands(600, *shape, dtype, device)
    run = operands.calls(kernels.linear)[name]
    with fixed_shapes():
        crowd = run(ALL)
        for few in (slice(599, 600), slice(17, 34), slice(500, 565), slice(300, 600)):
            assert torch.equal(run(few), crowd[few])
    assert_close(crowd, means(operands, name, dtype), dtype)


@pytest.mark.parametrize("T", [1, 8, 16])
def test_parts_add_up_in_one_order(
    T: int, dtype: torch.dtype, device: torch.device, even_products: None
) -> None:
    run = Operands(16, *SPLIT_SHAPE, dtype, device).calls(kernels.linear)["norm_linear"]
    few = slice(16 - T, None)
    assert torch.equal(run(few), run(ALL)[few])


def test_no_rows(dtype: torch.dtype, device: torch.device) -> None:
    operands = Operands(0, 64, 48, dtype, device)
    for name, run in operands.calls(kernels.linear).items():
        width = 64 if "add" in name or "swiglu" in name else 48
        assert run(ALL).shape == (0, width)


def test_the_residual_is_left_as_it_was(dtype: torch.dtype, device: torch.device) -> None:
    operands = Operands(5, 64, 48, dtype, device)
    before = operands.x_TD.clone()
    for run in operands.calls(kernels.linear).values():
        run(ALL)
    assert torch.equal(operands.x_TD, before)


def test_a_nan_row_stays_alone(
    dtype: torch.dtype, device: torch.device, even_products: None
) -> None:
    operands = Operands(5, 64, 48, dtype, device)
    for run in operands.calls(kernels.linear).values():
        clean = run(ALL)
        operands.x_TD[2], operands.hidden_TF[2] = float("nan"), float("nan")
        y = run(ALL)
        operands.x_TD[2], operands.hidden_TF[2] = 1.0, 1.0
        assert y[2].isnan().all()
        assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("T", [1, 8, 16])
@pytest.mark.parametrize(
    ("D", "F"),
    [(2048, 12352), (2048, 9216), (4096, 2048), (2048, 1544), (2048, 64), (2048, 248320)],
)
def test_few_rows_read_their_weights_once(T: int, D: int, F: int) -> None:
    """By the books of the launch, at the sizes of real models."""
    x_TD = torch.empty(T, D, dtype=torch.bfloat16, device="meta")
    norm_D = torch.empty(D, dtype=torch.bfloat16, device="meta")
    weight_FD = torch.empty(F, D, dtype=torch.bfloat16, device="meta")
    with recording() as launches:
        kernels.linear.norm_linear(x_TD, norm_D, EPS, weight_FD)
    (one,) = launches
    assert one.cost.moved_bytes <= 1.15 * one.cost.necessary_bytes
    if F >= 1024:
        assert one.grid[0] * one.grid[1] >= 96


def test_weights_that_do_not_fit_are_refused(device: torch.device) -> None:
    x_TD = torch.randn(2, 32, device=device)
    for weight in (torch.randn(4, 33), torch.randn(4, 32).half(), torch.randn(32, 4).T):
        with pytest.raises(ValueError, match="do not fit"):
            kernels.linear.linear(x_TD, weight.to(device))
