"""The mixture of experts in Triton against the reference, and bit for bit against itself."""

import pytest
import torch

import kernels.fused_moe
from kernels.backend import fixed_shapes
from kernels.fused_moe import MoeWeights, reference
from kernels.launch import recording
from tests.kernels.triton.even_products import even_products

__all__ = ["even_products"]

EPS = 1e-6
SIZES = {  # D, expert width, shared width, J, top k
    "small": (64, 16, 16, 16, 4),
    "odd": (40, 24, 20, 5, 2),
    "all": (33, 17, 9, 3, 3),
}
CASES = ((1, 7, 8), (9, 64), (70, 100))  # rows that take the same path in "small"
# fp32 sums of some hundred terms; in halves every expert's answer is rounded.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}


@pytest.fixture(params=SIZES)
def weights(request: pytest.FixtureRequest, dtype: torch.dtype, device: torch.device) -> MoeWeights:
    return make_weights(SIZES[request.param], dtype, device)


def make_weights(
    size: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
) -> MoeWeights:
    D, width, shared_width, J, top_k = size

    def matrix(*shape: int) -> torch.Tensor:
        if device.type == "meta":
            return torch.empty(*shape, dtype=dtype, device=device)
        return (torch.randn(*shape) * shape[-1] ** -0.5).to(dtype).to(device)

    return MoeWeights(
        router_JD=matrix(J, D) * 4,  # clear choices: rounding must not change them
        gate_up_JFD=matrix(J, 2 * width, D),
        down_JDF=matrix(J, D, width),
        shared_gate_up_FD=matrix(2 * shared_width, D),
        shared_down_DF=matrix(D, shared_width),
        shared_gate_1D=matrix(1, D),
        top_k=top_k,
    )


def make_rows(T: int, weights: MoeWeights) -> torch.Tensor:
    router_JD = weights.router_JD
    rows_TD = torch.randn(T, router_JD.shape[1] + 8)[:, 8:]  # a view
    return rows_TD.to(router_JD.device, router_JD.dtype)


def run(
    op: object, residual_TD: torch.Tensor, weights: MoeWeights, **options: bool
) -> torch.Tensor:
    D = weights.router_JD.shape[1]
    norm_D = torch.linspace(-0.5, 0.5, D, device=residual_TD.device, dtype=residual_TD.dtype)
    return op.fused_moe_add(residual_TD, norm_D, EPS, weights, **options)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = expected.double().abs().max().item()
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCE[expected.dtype] * largest


@pytest.mark.parametrize(
    ("T", "adds_residual"), [(1, True), (8, False), (9, True), (63, False), (65, True), (100, True)]
)
def test_triton_means_the_reference(T: int, adds_residual: bool, weights: MoeWeights) -> None:
    residual_TD = make_rows(T, weights)
    before = residual_TD.clone()
    expected = run(reference, residual_TD, weights, adds_residual=adds_residual)
    assert_close(
        run(kernels.fused_moe, residual_TD, weights, adds_residual=adds_residual), expected
    )
    assert torch.equal(residual_TD, before)


@pytest.mark.slow
def test_more_rows_than_one_program_chooses_for_at_a_time(device: torch.device) -> None:
    weights = make_weights((16, 16, 16, 32, 2), torch.float32, device)
    residual_TD = make_rows(577, weights)
    assert_close(run(kernels.fused_moe, residual_TD, weights), run(reference, residual_TD, weights))


def test_no_rows(weights: MoeWeights) -> None:
    assert (
        run(kernels.fused_moe, make_rows(0, weights), weights).shape == make_rows(0, weights).shape
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(
    case: tuple[int, ...], dtype: torch.dtype, device: torch.device, even_products: None
) -> None:
    weights = make_weights(SIZES["small"], dtype, device)
    residual_TD = make_rows(case[-1], weights)
    crowd = run(kernels.fused_moe, residual_TD, weights)
    for rows in case[:-1]:
        few = slice(case[-1] - rows, None)
        assert torch.equal(run(kernels.fused_moe, residual_TD[few], weights), crowd[few])


def test_with_fixed_shapes_a_row_has_the_same_bits_in_any_crowd(
    dtype: torch.dtype, device: torch.device, even_products: None
) -> None:
    """Few rows and many, with tiles that would have grown."""
    weights = make_weights(SIZES["small"], dtype, device)
    residual_TD = make_rows(200, weights)
    with fixed_shapes():
        crowd = run(kernels.fused_moe, residual_TD, weights)
        for few in (slice(199, 200), slice(30, 38), slice(30, 40), slice(100, 200)):
            assert torch.equal(run(kernels.fused_moe, residual_TD[few], weights), crowd[few])
    assert_close(crowd, run(reference, residual_TD, weights))


@pytest.mark.parametrize("T", [3, 12])
def test_of_equal_logits_the_lower_experts_win(
    T: int, dtype: torch.dtype, device: torch.device
) -> None:
    weights = make_weights(SIZES["small"], dtype, device)
    weights.router_JD.zero_()
    weights.gate_up_JFD[4:] = float("nan")  # read, they would show
    residual_TD = make_rows(T, weights)
    assert_close(run(kernels.fused_moe, residual_TD, weights), run(reference, residual_TD, weights))


@pytest.mark.parametrize("T", [3, 20])
def test_one_expert_for_all(T: int, dtype: torch.dtype, device: torch.device) -> None:
    """The fullest expert there can be, and all others empty but for the lowest."""
    weights = make_weights(SIZES["small"], dtype, device)
    weights.router_JD.zero_()
    residual_TD = make_rows(T, weights).abs() + 0.5
    weights.router_JD[11] = 1.0
    weights.gate_up_JFD[[3, 4, 10, 12]] = float("nan")
    assert_close(run(kernels.fused_moe, residual_TD, weights), run(reference, residual_TD, weights))


@pytest.mark.parametrize("T", [5, 12])
def test_a_nan_row_stays_alone(
    T: int, dtype: torch.dtype, device: torch.device, even_products: None
) -> None:
    weights = make_weights(SIZES["small"], dtype, device)
    residual_TD = make_rows(T, weights).clone()
    clean = run(kernels.fused_moe, residual_TD, weights)
    residual_TD[2] = float("nan")
    y_TD = run(kernels.fused_moe, residual_TD, weights)
    others = [t for t in range(T) if t != 2]
    assert y_TD[2].isnan().all()
    assert torch.equal(y_TD[others], clean[others])


def test_the_books_of_few_rows() -> None:
    """Three launches for norm, router and experts, and hardly a byte too many, at real sizes."""
    weights = make_weights((2048, 512, 512, 256, 8), torch.bfloat16, torch.device("meta"))
    for T in range(1, 9):
        residual_TD = torch.empty(T, 2048, dtype=torch.bfloat16, device="meta")
        with recording() as launches:
            run(kernels.fused_moe, residual_TD, weights)
        assert len(launches) == 3
        for one in launches:
            assert one.cost.moved_bytes <= 1.15 * one.cost.necessary_bytes
