"""Gated DeltaNet against the recurrence in fp64, transformers, and itself in other company."""

from types import ModuleType

import pytest
import torch
from torch.nn import functional

import kernels.gated_delta
from kernels.gated_delta import DeltaNetWeights, reference
from tests.kernels.closeness import assert_close

SLOTS = 7
SHAPES = {"family": (4, 8, 128, 128), "demo": (2, 2, 64, 64), "odd": (2, 6, 24, 20)}  # H N K V


@pytest.fixture(params=[reference, kernels.gated_delta], ids=["reference", "cpu"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


class Layer:
    """Weights and pools of one layer. The pools are dirty: what is not overwritten must show."""

    def __init__(self, shape: str, dtype: torch.dtype, W: int = 4) -> None:
        self.H, self.N, self.K, self.V = SHAPES[shape]
        self.C = 2 * self.H * self.K + self.N * self.V
        self.dtype = dtype
        self.weights = DeltaNetWeights(
            conv_CW=(torch.randn(self.C, W) * 0.5).to(dtype),
            A_log_N=torch.rand(self.N) * 2 - 1,
            dt_bias_N=torch.rand(self.N) * 2 - 3,
            norm_V=torch.rand(self.V) + 0.5,
            eps=1e-6,
            num_key_heads=self.H,
        )
        self.conv = torch.randn(SLOTS, self.C, W - 1).to(dtype)
        self.state = torch.randn(SLOTS, self.N, self.K, self.V)

    def inputs(self, rows: int) -> tuple[torch.Tensor, ...]:
        """mixed, z, b, a as views of one fused projection."""
        sizes = (self.C, self.N * self.V, self.N, self.N)
        mixed, z, b, a = torch.randn(rows, sum(sizes)).to(self.dtype).split(sizes, dim=-1)
        return mixed, z.unflatten(-1, (self.N, self.V)), b, a

    def oracle(
        self,
        inputs: tuple[torch.Tensor, ...],
        columns_CX: torch.Tensor,
        state_NKV: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token by token and head by head in fp64: o, columns and state after the last row."""
        w, H, N, K, V = self.weights, self.H, self.N, self.K, self.V
        columns, S = columns_CX.double(), state_NKV.double().clone()
        outputs = []
        for mixed, z, b, a in zip(*(x.double() for x in inputs), strict=True):
            window = torch.cat((columns, mixed[:, None]), dim=1)
            columns = window[:, 1:]
            y = functional.silu((window * w.conv_CW.double()).sum(1))
            heads = []
            for n in range(N):
                h = n // (N // H)
                q, k = y[h * K : (h + 1) * K], y[(H + h) * K : (H + h + 1) * K]
                v = y[2 * H * K + n * V : 2 * H * K + (n + 1) * V]
                q = q / (q.square().sum() + 1e-6).sqrt() * K**-0.5
                k = k / (k.square().sum() + 1e-6).sqrt()
                softplus = functional.softplus(a[n] + w.dt_bias_N[n].double())
                S[n] *= torch.exp(-w.A_log_N[n].double().exp() * softplus)
                S[n] += torch.outer(k, torch.sigmoid(b[n]) * (v - S[n].T @ k))
                o = S[n].T @ q
                o = o / (o.square().mean() + w.eps).sqrt() * w.norm_V.double()
                heads.append(o * functional.silu(z[n]))
            outputs.append(torch.cat(heads))
        empty = torch.zeros(0, N * V, dtype=torch.float64)
        return torch.stack(outputs) if outputs else empty, columns, S

    def decode(
        self, op: ModuleType, inputs: tuple[torch.Tensor, ...], slots: list[int]
    ) -> torch.Tensor:
        return op.gated_delta_decode(
            *inputs,
            self.weights,
            conv_PCX=self.conv,
            state_PNKV=self.state,
            slot_B=torch.tensor(slots, dtype=torch.int64),
        )

    def prefill(
        self,
        op: ModuleType,
        inputs: tuple[torch.Tensor, ...],
        slices: list[tuple[int, int, int]],
        emits: dict[int, int] | None = None,
    ) -> torch.Tensor:
        """Run (slot, start, end) slices; `inputs` hold their rows, packed. Emits: slot by row."""
        offset = [0]
        for _, start, end in slices:
            offset.append(offset[-1] + end - start)
        return op.gated_delta_prefill(
            *inputs,
            self.weights,
            conv_PCX=self.conv,
            state_PNKV=self.state,
            slot_S=torch.tensor([slot for slot, _, _ in slices], dtype=torch.int64),
            start_S=torch.tensor([start for _, start, _ in slices], dtype=torch.int32),
            offset_S1=torch.tensor(offset, dtype=torch.int32),
            emit_row_Z=None if emits is None else torch.tensor(list(emits), dtype=torch.int32),
            emit_slot_Z=None if emits is None else torch.tensor(list(emits.values())),
        )


def cut(inputs: tuple[torch.Tensor, ...], first: int, last: int) -> tuple[torch.Tensor, ...]:
    return tuple(x[first:last] for x in inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("B", [0, 1, 2, 5])
def test_decode(op: ModuleType, B: int, shape: str, dtype: torch.dtype) -> None:
    layer = Layer(shape, dtype)
    conv, state = layer.conv.clone(), layer.state.clone()
    slots = (torch.randperm(SLOTS - 1)[:B] + 1).tolist()
    steps = [layer.inputs(B) for _ in range(5)]
    outputs = [layer.decode(op, inputs, slots) for inputs in steps]
    for b, slot in enumerate(slots):
        rows = tuple(torch.stack([inputs[i][b] for inputs in steps]) for i in range(4))
        o, columns, S = layer.oracle(rows, conv[slot], state[slot])
        assert_close(torch.stack([out[b] for out in outputs]), o, dtype)
        assert torch.equal(layer.conv[slot].double(), columns)  # raw columns: nothing to round
        assert_close(layer.state[slot], S, torch.float32)
    others = [slot for slot in range(SLOTS) if slot not in slots]
    assert torch.equal(layer.conv[others], conv[others])
    assert torch.equal(layer.state[others], state[others])


@pytest.mark.parametrize("W", [2, 3, 5])
def test_other_convolution_widths(op: ModuleType, W: int, dtype: torch.dtype) -> None:
    layer = Layer("demo", dtype, W)
    inputs = layer.inputs(70)
    zeros = torch.zeros_like(layer.conv[1]), torch.zeros_like(layer.state[1])
    expected, columns, _ = layer.oracle(inputs, *zeros)
    o = layer.prefill(op, cut(inputs, 0, 68), [(1, 0, 68)])
    last = [layer.decode(op, cut(inputs, t, t + 1), [1]) for t in (68, 69)]
    assert_close(torch.cat([o, *last]), expected, dtype)
    assert torch.equal(layer.conv[1].double(), columns)


def test_padding_rows_share_slot_zero(op: ModuleType, dtype: torch.dtype) -> None:
    alone, crowd = Layer("demo", dtype), Layer("demo", dtype)
    crowd.weights = alone.weights
    crowd.conv, crowd.state = alone.conv.clone(), alone.state.clone()
    inputs = alone.inputs(6)
    o = alone.decode(op, cut(inputs, 0, 2), [3, 1])
    padded = crowd.decode(op, inputs, [3, 1, 0, 0, 0, 0])
    assert torch.equal(padded[:2], o)
    assert torch.equal(crowd.conv[1:], alone.conv[1:])
    assert torch.equal(crowd.state[1:], alone.state[1:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 2, 7, 63, 64, 65, 100])
def test_prefill_from_nothing(op: ModuleType, length: int, shape: str, dtype: torch.dtype) -> None:
    layer = Layer(shape, dtype)
    conv, state = layer.conv.clone(), layer.state.clone()
    inputs = layer.inputs(length)
    o = layer.prefill(op, inputs, [(2, 0, length)])  # the slot is dirty
    zeros = torch.zeros_like(conv[2]), torch.zeros_like(state[2])
    expected, columns, S = layer.oracle(inputs, *zeros)
    assert_close(o, expected, dtype)
    assert torch.equal(layer.conv[2].double(), columns)
    assert_close(layer.state[2], S, torch.float32)
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(layer.conv[others], conv[others])
    assert torch.equal(layer.state[others], state[others])


def test_prefill_continues_slots(op: ModuleType, dtype: torch.dtype) -> None:
    """Packed slices: odd starts and ends, one token, none, and a continuation over the grid."""
    layer = Layer("odd", dtype)
    conv, state = layer.conv.clone(), layer.state.clone()
    slices = [(4, 64, 129), (1, 37, 38), (2, 128, 128), (6, 3, 80), (5, 62, 64)]
    total = sum(end - start for _, start, end in slices)
    inputs = layer.inputs(total)
    o = layer.prefill(op, inputs, slices)
    at = 0
    for slot, start, end in slices:
        rows = cut(inputs, at, at + end - start)
        expected, columns, S = layer.oracle(rows, conv[slot], state[slot])
        assert_close(o[at : at + end - start], expected, dtype)
        assert torch.equal(layer.conv[slot].double(), columns)
        assert_close(layer.state[slot], S, torch.float32)
        at += end - start
    assert torch.equal(layer.conv[[0, 3]], conv[[0, 3]])
    assert torch.equal(layer.state[[0, 3]], state[[0, 3]])


def test_strong_decay_does_not_overflow(op: ModuleType) -> None:
    """exp of a positive difference above the diagonal would be inf, and inf * 0 is NaN."""
    layer = Layer("demo", torch.float32)
    layer.weights.A_log_N.fill_(3.0)
    layer.weights.dt_bias_N.fill_(8.0)
    inputs = layer.inputs(100)
    o = layer.prefill(op, inputs, [(1, 0, 100)])
    zeros = torch.zeros_like(layer.conv[1]), torch.zeros_like(layer.state[1])
    assert_close(o, layer.oracle(inputs, *zeros)[0], torch.float32)


@pytest.mark.parametrize("length", [63, 64, 65, 100, 300])
def test_prefill_cut_on_the_grid_or_in_a_crowd_gives_the_same_bits(
    op: ModuleType, length: int, dtype: torch.dtype
) -> None:
    layer = Layer("demo", dtype)
    inputs = layer.inputs(length + 90)
    crowd = layer.prefill(op, inputs, [(1, 0, length), (3, 0, 90)])
    alone = layer.prefill(op, cut(inputs, 0, length), [(2, 0, length)])
    assert torch.equal(crowd[:length], alone)
    assert torch.equal(layer.state[1], layer.state[2])
    for step in (64, 128):
        parts = [
            layer.prefill(op, cut(inputs, at, end), [(4, at, end)])
            for at in range(0, length, step)
            for end in [min(at + step, length)]
        ]
        assert torch.equal(torch.cat(parts), alone)
        assert torch.equal(layer.state[4], layer.state[2])
        assert torch.equal(layer.conv[4], layer.conv[2])


def test_snapshots_equal_a_prefill_cut_there(op: ModuleType, dtype: torch.dtype) -> None:
    """On the grid, at an end off it, and of a slice so short that old columns remain."""
    layer = Layer("odd", dtype)
    conv, state = layer.conv.clone(), layer.state.clone()
    inputs = layer.inputs(150 + 2)
    slices = [(1, 10, 160), (2, 62, 64)]
    o = layer.prefill(op, inputs, slices, {53: 3, 117: 4, 149: 5, 151: 6})
    emitted_conv, emitted_state = layer.conv.clone(), layer.state.clone()
    assert torch.equal(emitted_state[0], state[0])
    for rows, slot, end in ((54, 3, 64), (118, 4, 128), (150, 5, 160)):
        layer.conv, layer.state = conv.clone(), state.clone()
        part = layer.prefill(op, cut(inputs, 0, rows), [(1, 10, end)])
        assert torch.equal(part, o[:rows])
        assert torch.equal(emitted_conv[slot], layer.conv[1])
        assert torch.equal(emitted_state[slot], layer.state[1])
    layer.conv, layer.state = conv.clone(), state.clone()
    layer.prefill(op, cut(inputs, 150, 152), [(2, 62, 64)])
    assert torch.equal(emitted_conv[6], layer.conv[2])
    assert torch.equal(emitted_state[6], layer.state[2])


@pytest.mark.parametrize(
    "emits",
    [{52: 3}, {54: 3}, {99: 3}, {-11: 3}, {53: 3, 99: 3}, {53: 1}],
    ids=["early", "late", "no row", "before", "one slot twice", "a slice's slot"],
)
def test_illegal_snapshots_are_refused(op: ModuleType, emits: dict[int, int]) -> None:
    layer = Layer("odd", torch.float32)
    conv, state = layer.conv.clone(), layer.state.clone()
    inputs = layer.inputs(90)
    with pytest.raises(ValueError, match=r"rows|slots"):
        layer.prefill(op, inputs, [(1, 10, 100)], emits)
    assert torch.equal(layer.conv, conv)
    assert torch.equal(layer.state, state)


def test_decode_bits_do_not_depend_on_the_batch(op: ModuleType, dtype: torch.dtype) -> None:
    layer = Layer("demo", dtype)
    conv, state = layer.conv.clone(), layer.state.clone()
    inputs = layer.inputs(6)
    slots = [3, 6, 1, 2, 5, 4]
    o = layer.decode(op, inputs, slots)
    after = layer.state.clone()
    for rows in (1, 2, 5):
        layer.conv, layer.state = conv.clone(), state.clone()
        few = layer.decode(op, cut(inputs, 6 - rows, 6), slots[6 - rows :])
        assert torch.equal(few, o[6 - rows :])
        assert torch.equal(layer.state[slots[6 - rows :]], after[slots[6 - rows :]])


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    layer = Layer("family", dtype)
    conv, state = layer.conv.clone(), layer.state.clone()
    inputs = layer.inputs(130)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            layer.conv, layer.state = conv.clone(), state.clone()
            o = layer.prefill(kernels.gated_delta, cut(inputs, 0, 128), [(1, 0, 100), (2, 64, 92)])
            step = layer.decode(kernels.gated_delta, cut(inputs, 128, 130), [1, 2])
            results.append((o, step, layer.conv, layer.state))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("length", [1, 64, 100])
def test_transformers_agrees(op: ModuleType, length: int) -> None:
    """The convolution, both of transformers' delta rules and its gated norm, chained."""
    modeling = pytest.importorskip("transformers.models.qwen3_5_moe.modeling_qwen3_5_moe")
    layer = Layer("odd", torch.float32)
    w, H, N, K, V = layer.weights, layer.H, layer.N, layer.K, layer.V
    mixed, z, b, a = layer.inputs(length + 1)
    norm = modeling.Qwen3_5MoeRMSNormGated(V, eps=w.eps)
    norm.weight.data.copy_(w.norm_V)
    padded = functional.pad(mixed.T[None], (3, 0))
    y = functional.conv1d(padded, w.conv_CW[:, None], groups=layer.C)
    y = functional.silu(y)[0].T
    q, k, v = y.split((H * K, H * K, N * V), dim=-1)
    q, k = (x.unflatten(-1, (H, K))[None] for x in (q, k))
    v = v.unflatten(-1, (N, V))[None]
    g = (-w.A_log_N.exp() * functional.softplus(a + w.dt_bias_N))[None]
    beta = b.sigmoid()[None]
    chunked, state = modeling.torch_chunk_gated_delta_rule(
        *(x[:, :length] for x in (q, k, v, g, beta)),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    step, last_state = modeling.torch_recurrent_gated_delta_rule(
        *(x[:, length:] for x in (q, k, v, g, beta)),
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    with torch.no_grad():
        expected = norm(torch.cat((chunked, step), dim=1)[0], z).flatten(1)
    inputs = (mixed, z, b, a)
    o = layer.prefill(op, cut(inputs, 0, length), [(1, 0, length)])
    assert_close(layer.state[1], state[0], torch.float32)
    last = layer.decode(op, cut(inputs, length, length + 1), [1])
    assert_close(torch.cat((o, last)), expected, torch.float32)
    assert_close(layer.state[1], last_state[0], torch.float32)
