"""The mixture of experts against fp64, transformers, and itself in other company."""

from types import ModuleType

import pytest
import torch

import kernels.fused_moe
from kernels.fused_moe import MoeWeights, reference
from kernels.norm_rope.reference import rms_norm
from tests.kernels.closeness import assert_close

ROWS = (0, 1, 2, 7, 63, 64, 65, 100)
EPS = 1e-6
SIZES = {  # D, expert width, shared width, J, top k
    "demo": (512, 128, 128, 32, 8),
    "odd": (40, 24, 20, 5, 2),
    "all": (33, 17, 9, 3, 3),
}


@pytest.fixture(params=[reference, kernels.fused_moe], ids=["reference", "cpu"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture(params=SIZES)
def weights(request: pytest.FixtureRequest, dtype: torch.dtype) -> MoeWeights:
    return make_weights(*SIZES[request.param], dtype)


def make_weights(
    D: int, width: int, shared_width: int, J: int, top_k: int, dtype: torch.dtype
) -> MoeWeights:
    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * shape[-1] ** -0.5).to(dtype)

    return MoeWeights(
        router_JD=matrix(J, D) * 4,  # clear choices: the oracle rounds differently
        gate_up_JFD=matrix(J, 2 * width, D),
        down_JDF=matrix(J, D, width),
        shared_gate_up_FD=matrix(2 * shared_width, D),
        shared_down_DF=matrix(D, shared_width),
        shared_gate_1D=matrix(1, D),
        top_k=top_k,
    )


def make_norm(weights: MoeWeights) -> torch.Tensor:
    D = weights.router_JD.shape[1]
    return torch.linspace(-0.5, 0.5, D).to(weights.router_JD.dtype)


def run(op: ModuleType, residual_TD: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
    return op.fused_moe_add(residual_TD, make_norm(weights), EPS, weights)


def normed(residual_TD: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
    """As the experts see it: by the one norm that all forms share."""
    return rms_norm(residual_TD, make_norm(weights), EPS)


def oracle(residual_TD: torch.Tensor, weights: MoeWeights) -> torch.Tensor:
    """Token by token in fp64: what is added to the residual."""
    x_TD = normed(residual_TD, weights)
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float64)

    def mlp(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up.double() @ x).chunk(2)
        return down.double() @ (gate / (1 + (-gate).exp()) * up)

    for t, x in enumerate(x_TD.double()):
        logits = weights.router_JD.double() @ x
        chosen = sorted(range(len(logits)), key=lambda j: -logits[j].item())[: weights.top_k]
        share = logits[chosen].softmax(0)
        for weight, j in zip(share, chosen, strict=True):
            y_TD[t] += weight * mlp(x, weights.gate_up_JFD[j], weights.down_JDF[j])
        shared = mlp(x, weights.shared_gate_up_FD, weights.shared_down_DF)
        y_TD[t] += torch.sigmoid(weights.shared_gate_1D.double() @ x) * shared
    return y_TD


@pytest.mark.parametrize("T", ROWS)
def test_fused_moe_add(op: ModuleType, T: int, weights: MoeWeights, dtype: torch.dtype) -> None:
    D = weights.router_JD.shape[1]
    residual_TD = 3 * torch.randn(T, D + 3).to(dtype)[:, :D]
    before = residual_TD.clone()
    y_TD = run(op, residual_TD, weights)
    assert y_TD.dtype == dtype
    assert torch.equal(residual_TD, before)
    added_TD = oracle(residual_TD, weights)
    assert_close(y_TD, residual_TD.double() + added_TD, dtype)
    only_added_TD = op.fused_moe_add(
        residual_TD, make_norm(weights), EPS, weights, adds_residual=False
    )
    assert_close(only_added_TD, added_TD, dtype)


def test_a_row_has_the_same_bits_alone_and_in_a_crowd(
    op: ModuleType, weights: MoeWeights, dtype: torch.dtype
) -> None:
    x_TD = torch.randn(100, weights.router_JD.shape[1]).to(dtype)
    y_TD = run(op, x_TD, weights)
    for rows in (1, 2, 7, 8, 9, 63, 64, 65):
        assert torch.equal(run(op, x_TD[100 - rows :], weights), y_TD[100 - rows :])


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    weights = make_weights(*SIZES["demo"], dtype)
    x_TD = torch.randn(65, 512).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(kernels.fused_moe, x_TD, weights)
        torch.set_num_threads(3)
        shared = run(kernels.fused_moe, x_TD, weights)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, shared)


def test_only_chosen_experts_are_read(op: ModuleType, dtype: torch.dtype) -> None:
    weights = make_weights(*SIZES["demo"], dtype)
    x_TD = torch.randn(2, 512).to(dtype)
    clean = run(op, x_TD, weights)
    chosen = (normed(x_TD, weights).float() @ weights.router_JD.float().T).topk(8).indices.unique()
    unused = sorted(set(range(32)) - set(chosen.tolist()))
    weights.gate_up_JFD[unused] = float("nan")
    weights.down_JDF[unused] = float("nan")
    assert torch.equal(run(op, x_TD, weights), clean)


def test_a_nan_row_stays_alone(op: ModuleType, dtype: torch.dtype) -> None:
    weights = make_weights(*SIZES["demo"], dtype)
    x_TD = torch.randn(3, 512).to(dtype)
    clean = run(op, x_TD, weights)
    x_TD[1] = float("nan")
    y_TD = run(op, x_TD, weights)
    assert y_TD[1].isnan().all()
    assert torch.equal(y_TD[[0, 2]], clean[[0, 2]])


def test_of_equal_logits_the_lower_experts_win(op: ModuleType, dtype: torch.dtype) -> None:
    weights = make_weights(*SIZES["demo"], dtype)
    weights.router_JD.zero_()
    weights.gate_up_JFD[8:] = float("nan")  # read, they would show
    x_TD = torch.randn(2, 512).to(dtype)
    assert_close(run(op, x_TD, weights), x_TD.double() + oracle(x_TD, weights), dtype)


def test_transformers_agrees(op: ModuleType) -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_5_moe.modeling_qwen3_5_moe")
    config = modeling.Qwen3_5MoeTextConfig(
        hidden_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        num_experts=8,
        num_experts_per_tok=3,
        experts_implementation="eager",
    )
    weights = make_weights(64, 32, 48, 8, 3, torch.float32)
    block = modeling.Qwen3_5MoeSparseMoeBlock(config)
    gate, up = weights.shared_gate_up_FD.chunk(2)
    with torch.no_grad():
        block.gate.weight.copy_(weights.router_JD)
        block.experts.gate_up_proj.copy_(weights.gate_up_JFD)
        block.experts.down_proj.copy_(weights.down_JDF)
        block.shared_expert.gate_proj.weight.copy_(gate)
        block.shared_expert.up_proj.weight.copy_(up)
        block.shared_expert.down_proj.weight.copy_(weights.shared_down_DF)
        block.shared_expert_gate.weight.copy_(weights.shared_gate_1D)
        x_TD = torch.randn(11, 64)
        expected = x_TD + block(normed(x_TD, weights)[None])[0]
    assert_close(run(op, x_TD, weights), expected, torch.float32)


def test_weights_that_do_not_fit_are_refused() -> None:
    good = make_weights(*SIZES["odd"], torch.float32)
    for name in ("router_JD", "gate_up_JFD", "down_JDF", "shared_gate_up_FD", "shared_down_DF"):
        fields = {field: getattr(good, field) for field in MoeWeights.__slots__}
        fields[name] = fields[name][..., :-1]
        with pytest.raises(ValueError, match=r"needed|contiguous"):
            MoeWeights(**fields)
