"""Linear layers and the dense MLP against fp64, and bit for bit in other company."""

import concurrent.futures
from types import ModuleType

import pytest
import torch

import kernels.linear
from kernels.linear import reference
from tests.kernels.closeness import assert_close

ROWS = (0, 1, 2, 7, 8, 9, 63, 64, 65, 100)
EPS = 1e-6
SHAPES = ((512, 256), (40, 36), (33, 17), (64, 1))  # whole vectors, part vectors, one column


@pytest.fixture(params=[reference, kernels.linear], ids=["reference", "cpu"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.mark.parametrize(("D", "F"), SHAPES)
@pytest.mark.parametrize("T", ROWS)
def test_linear(op: ModuleType, T: int, D: int, F: int, dtype: torch.dtype) -> None:
    x_TD = torch.randn(T, D + 5).to(dtype)[:, 3 : D + 3]  # a view, as slices of projections are
    weight_FD = torch.randn(F, D).to(dtype)
    y_TF = op.linear(x_TD, weight_FD)
    assert y_TF.dtype == dtype
    assert_close(y_TF, x_TD.double() @ weight_FD.double().T, dtype)


def normed(x_TD: torch.Tensor, norm_D: torch.Tensor) -> torch.Tensor:
    """In fp64, rounded as the operand of a product is."""
    x = x_TD.double()
    y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * (1 + norm_D.double())
    return y.to(x_TD.dtype).double()


@pytest.mark.parametrize(("D", "F"), SHAPES)
@pytest.mark.parametrize("T", ROWS)
def test_norm_linear(op: ModuleType, T: int, D: int, F: int, dtype: torch.dtype) -> None:
    x_TD = 3 * torch.randn(T, D + 5).to(dtype)[:, 3 : D + 3]
    norm_D = torch.randn(D).to(dtype)
    weight_FD = torch.randn(F, D).to(dtype)
    y_TF = op.norm_linear(x_TD, norm_D, EPS, weight_FD)
    assert y_TF.dtype == dtype
    assert_close(y_TF, normed(x_TD, norm_D) @ weight_FD.double().T, dtype)


@pytest.mark.parametrize(("D", "F"), SHAPES)
@pytest.mark.parametrize("T", ROWS)
def test_linear_add(op: ModuleType, T: int, D: int, F: int, dtype: torch.dtype) -> None:
    x_TF = torch.randn(T, F).to(dtype)
    weight_DF = torch.randn(D, F).to(dtype)
    residual_TD = torch.randn(T, D + 2).to(dtype)[:, 1 : D + 1]
    before = residual_TD.clone()
    y_TD = op.linear_add(x_TF, weight_DF, residual_TD)
    assert y_TD.dtype == dtype
    assert torch.equal(residual_TD, before)
    assert_close(y_TD, residual_TD.double() + x_TF.double() @ weight_DF.double().T, dtype)


@pytest.mark.parametrize("T", ROWS)
def test_linear_fp32_does_not_round(op: ModuleType, T: int, dtype: torch.dtype) -> None:
    x_TD = torch.randn(T, 128).to(dtype)
    weight_FD = torch.randn(300, 128).to(dtype)
    y_TF = op.linear_fp32(x_TD, weight_FD)
    assert y_TF.dtype == torch.float32
    assert_close(y_TF, x_TD.double() @ weight_FD.double().T, torch.float32)


@pytest.mark.parametrize("adds_residual", [True, False])
@pytest.mark.parametrize(("D", "F"), SHAPES)
@pytest.mark.parametrize("T", ROWS)
def test_norm_swiglu_add(
    op: ModuleType, T: int, D: int, F: int, adds_residual: bool, dtype: torch.dtype
) -> None:
    x_TD = 3 * torch.randn(T, D + 5).to(dtype)[:, 3 : D + 3]
    norm_D = torch.randn(D).to(dtype)
    gate_up_FD = (torch.randn(2 * F, D) * D**-0.5).to(dtype)
    down_DF = (torch.randn(D, F) * F**-0.5).to(dtype)
    gate_TF, up_TF = (normed(x_TD, norm_D) @ gate_up_FD.double().T).chunk(2, dim=-1)
    oracle = (torch.nn.functional.silu(gate_TF) * up_TF) @ down_DF.double().T
    if adds_residual:
        oracle += x_TD.double()
    y_TD = op.norm_swiglu_add(x_TD, norm_D, EPS, gate_up_FD, down_DF, adds_residual=adds_residual)
    assert_close(y_TD, oracle, dtype)


@pytest.mark.parametrize(("D", "F"), SHAPES)
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(
    op: ModuleType, D: int, F: int, dtype: torch.dtype
) -> None:
    x_TD = torch.randn(100, D).to(dtype)
    hidden_TF = torch.randn(100, F).to(dtype)
    norm_D = torch.randn(D).to(dtype)
    weight_FD = torch.randn(F, D).to(dtype)
    gate_up_FD = torch.randn(2 * F, D).to(dtype)
    down_DF = torch.randn(D, F).to(dtype)

    def results(rows: slice) -> list[torch.Tensor]:
        x = x_TD[rows]
        return [
            op.linear(x, weight_FD),
            op.linear_fp32(x, weight_FD),
            op.norm_linear(x, norm_D, EPS, weight_FD),
            op.linear_add(hidden_TF[rows], down_DF, x),
            op.norm_swiglu_add(x, norm_D, EPS, gate_up_FD, down_DF),
        ]

    crowd = results(slice(None))
    for rows in ROWS:
        few = slice(100 - rows, None)  # other places in the batch, too
        for alone, together in zip(results(few), crowd, strict=True):
            assert torch.equal(alone, together[few])


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    x_TD = torch.randn(100, 512).to(dtype)
    weight_FD = torch.randn(300, 512).to(dtype)
    few_FD = torch.randn(16, 512).to(dtype)  # shared by rows, not by columns
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                (kernels.linear.linear(x_TD, weight_FD), kernels.linear.linear(x_TD, few_FD))
            )
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


def test_a_nan_row_stays_alone(op: ModuleType, dtype: torch.dtype) -> None:
    x_TD = torch.randn(9, 64).to(dtype)
    weight_FD = torch.randn(32, 64).to(dtype)
    clean = op.linear(x_TD, weight_FD)
    x_TD[4] = float("nan")
    y_TF = op.linear(x_TD, weight_FD)
    assert y_TF[4].isnan().all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(y_TF[others], clean[others])


@pytest.mark.parametrize("weight", [torch.randn(4, 9), torch.randn(4, 8).half()])
def test_what_does_not_fit_is_refused(weight: torch.Tensor) -> None:
    if not kernels.linear.cpu.functions():
        pytest.skip("no C++ compiler")
    with pytest.raises(ValueError, match="do not fit"):
        kernels.linear.linear(torch.randn(2, 8), weight)


def test_callers_at_the_same_time_do_not_disturb_each_other(dtype: torch.dtype) -> None:
    """One call has the threads, others work alone; all are right."""
    x_TD = torch.randn(64, 512).to(dtype)
    weights = [torch.randn(96, 512).to(dtype) for _ in range(4)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [kernels.linear.linear(x_TD, weight_FD) for weight_FD in weights]
        torch.set_num_threads(3)

        def call_often(i: int) -> bool:
            return all(
                torch.equal(kernels.linear.linear(x_TD, weights[i]), expected[i]) for _ in range(50)
            )

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert all(pool.map(call_often, range(4)))
    finally:
        torch.set_num_threads(before)
