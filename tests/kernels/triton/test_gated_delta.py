"""Gated DeltaNet in Triton against the reference, and against itself in other company."""

import pytest
import torch

from kernels.gated_delta import (
    DeltaNetWeights,
    gated_delta_decode,
    gated_delta_prefill,
    reference,
)
from kernels.launch import recording
from tests.kernels.triton.dtypes import DTYPES

SLOTS = 8
SHAPES = {  # H N K V
    "one head": (1, 1, 16, 16),
    "one head each": (2, 2, 16, 32),
    "two heads each": (2, 4, 32, 16),
    "three heads each": (1, 3, 16, 16),
    "tiles": (1, 2, 16, 128),
}

# Sums of up to 64 rounded terms that follow one another through the chunks; fp16 and bf16 round
# q, k, v and what multiplies them to 11 and 8 bits, the output once more.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-6}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert not actual.isnan().any()
    error = (actual.double() - expected.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    assert error <= TOLERANCE[dtype] * max(largest, 1e-3), f"{error} off, largest {largest}"


class Layer:
    """Weights and dirty pools of one layer."""

    def __init__(
        self, device: torch.device, shape: str, dtype: torch.dtype = torch.float32, W: int = 4
    ) -> None:
        torch.manual_seed(0)
        self.H, self.N, self.K, self.V = SHAPES[shape]
        self.C = 2 * self.H * self.K + self.N * self.V
        self.dtype, self.device = dtype, device
        self.weights = DeltaNetWeights(
            conv_CW=(torch.randn(self.C, W) * 0.5).to(device, dtype),
            A_log_N=(torch.rand(self.N) * 2 - 1).to(device),
            dt_bias_N=(torch.rand(self.N) * 2 - 3).to(device),
            norm_V=(torch.rand(self.V) + 0.5).to(device),
            eps=1e-6,
            num_key_heads=self.H,
        )
        self.conv = torch.randn(SLOTS, self.C, W - 1).to(device, dtype)
        self.state = torch.randn(SLOTS, self.N, self.K, self.V).to(device)

    def inputs(self, rows: int) -> tuple[torch.Tensor, ...]:
        """mixed, z, b, a as views of one fused projection."""
        sizes = (self.C, self.N * self.V, self.N, self.N)
        fused = torch.randn(rows, sum(sizes)).to(self.device, self.dtype)
        mixed, z, b, a = fused.split(sizes, dim=-1)
        return mixed, z.unflatten(-1, (self.N, self.V)), b, a

    def pools(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv.clone(), self.state.clone()

    def decode(self, run, inputs, slots: list[int], conv, state) -> torch.Tensor:
        slot_B = torch.tensor(slots, dtype=torch.int64, device=self.device)
        return run(*inputs, self.weights, conv_PCX=conv, state_PNKV=state, slot_B=slot_B)

    def prefill(
        self,
        run,
        inputs,
        slices: list[tuple[int, int, int]],
        conv,
        state,
        emits: dict[int, int] | None = None,
    ) -> torch.Tensor:
        """Run packed (slot, start, end) slices; `emits` are slots by row."""
        offset = [0]
        for _, start, end in slices:
            offset.append(offset[-1] + end - start)

        def vector(values, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(list(values), dtype=dtype, device=self.device)

        return run(
            *inputs,
            self.weights,
            conv_PCX=conv,
            state_PNKV=state,
            slot_S=vector((slot for slot, _, _ in slices), torch.int64),
            start_S=vector((start for _, start, _ in slices), torch.int32),
            offset_S1=vector(offset, torch.int32),
            emit_row_Z=None if emits is None else vector(emits, torch.int32),
            emit_slot_Z=None if emits is None else vector(emits.values(), torch.int64),
        )


def cut(inputs: tuple[torch.Tensor, ...], first: int, last: int) -> tuple[torch.Tensor, ...]:
    return tuple(x[first:last] for x in inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "W"), [("one head", 2), *((shape, 4) for shape in SHAPES if shape != "one head")]
)
def test_decode(device: torch.device, shape: str, W: int, dtype: torch.dtype) -> None:
    layer = Layer(device, shape, dtype, W)
    (conv, state), (conv_ref, state_ref) = layer.pools(), layer.pools()
    slots = [5, 0, 3, 0]  # two padding rows
    real = [0, 2]
    for _ in range(2):
        inputs = layer.inputs(4)
        o = layer.decode(gated_delta_decode, inputs, slots, conv, state)
        expected = layer.decode(
            reference.gated_delta_decode,
            tuple(x[real] for x in inputs),
            [5, 3],
            conv_ref,
            state_ref,
        )
        assert_close(o[real], expected, dtype)
    assert torch.equal(conv[1:], conv_ref[1:])
    assert torch.equal(state[[1, 2, 4, 6, 7]], layer.state[[1, 2, 4, 6, 7]])
    assert_close(state[1:], state_ref[1:], torch.float32)


def test_decode_of_nothing(device: torch.device) -> None:
    layer = Layer(device, "two heads each")
    assert layer.decode(gated_delta_decode, layer.inputs(0), [], *layer.pools()).shape == (0, 64)


def test_decode_bits_do_not_depend_on_the_batch(device: torch.device) -> None:
    layer = Layer(device, "two heads each", torch.float16)
    inputs, slots = layer.inputs(3), [3, 6, 1]
    conv, state = layer.pools()
    o = layer.decode(gated_delta_decode, inputs, slots, conv, state)
    for b, slot in enumerate(slots):
        conv_alone, state_alone = layer.pools()
        alone = layer.decode(
            gated_delta_decode, cut(inputs, b, b + 1), [slot], conv_alone, state_alone
        )
        assert torch.equal(alone[0], o[b])
        assert torch.equal(state_alone[slot], state[slot])
        assert torch.equal(conv_alone[slot], conv[slot])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(shape, torch.float32) for shape in SHAPES]
    + [("two heads each", dtype) for dtype in DTYPES[1:]],
    ids=str,
)
def test_prefill(device: torch.device, shape: str, dtype: torch.dtype) -> None:
    """From nothing and continued, off the grid, one token, none, and fewer than saved columns."""
    layer = Layer(device, shape, dtype)
    slices = [(4, 0, 67), (1, 37, 38), (2, 128, 128), (6, 63, 66)]
    inputs = layer.inputs(sum(end - start for _, start, end in slices))
    (conv, state), (conv_ref, state_ref) = layer.pools(), layer.pools()
    o = layer.prefill(gated_delta_prefill, inputs, slices, conv, state)
    expected = layer.prefill(reference.gated_delta_prefill, inputs, slices, conv_ref, state_ref)
    assert_close(o, expected, dtype)
    assert torch.equal(conv, conv_ref)
    assert_close(state, state_ref, dtype)
    assert torch.equal(state[[0, 2, 3, 5, 7]], layer.state[[0, 2, 3, 5, 7]])


@pytest.mark.parametrize(("W", "length"), [(2, 63), (3, 64), (5, 65)])
def test_prefill_other_convolution_widths(device: torch.device, W: int, length: int) -> None:
    layer = Layer(device, "one head", W=W)
    inputs = layer.inputs(length + 2)
    slices = [(1, 0, length), (2, 7, 8), (3, 0, 1)]
    (conv, state), (conv_ref, state_ref) = layer.pools(), layer.pools()
    o = layer.prefill(gated_delta_prefill, inputs, slices, conv, state)
    expected = layer.prefill(reference.gated_delta_prefill, inputs, slices, conv_ref, state_ref)
    assert_close(o, expected, torch.float32)
    assert torch.equal(conv, conv_ref)
    assert_close(state, state_ref, torch.float32)


def test_many_slices(device: torch.device) -> None:
    """More slices, half of them empty, and more snapshots than are compared at a time."""
    layer = Layer(device, "one head")
    layer.conv = layer.conv[:1].repeat(120, 1, 1)
    layer.state = layer.state[:1].repeat(120, 1, 1, 1)
    slices = [(1 + s, s % 3, s % 3 + s % 2) for s in range(70)]
    emits = {row: 119 - row for row in range(35)}
    inputs = layer.inputs(35)
    (conv, state), (conv_ref, state_ref) = layer.pools(), layer.pools()
    o = layer.prefill(gated_delta_prefill, inputs, slices, conv, state, emits)
    expected = layer.prefill(
        reference.gated_delta_prefill, inputs, slices, conv_ref, state_ref, emits
    )
    assert_close(o, expected, torch.float32)
    assert torch.equal(conv, conv_ref)
    assert_close(state, state_ref, torch.float32)


def test_repeated_tokens(device: torch.device) -> None:
    """Equal keys, no decay, full strength: powers of A would grow like binomial coefficients."""
    layer = Layer(device, "one head")
    layer.weights.A_log_N.fill_(-20.0)
    mixed, z, b, a = (x[:1].expand(128, *x.shape[1:]).clone() for x in layer.inputs(1))
    b.fill_(20.0)
    (conv, state), (conv_ref, state_ref) = layer.pools(), layer.pools()
    slices = [(1, 0, 128)]
    o = layer.prefill(gated_delta_prefill, (mixed, z, b, a), slices, conv, state)
    expected = layer.prefill(
        reference.gated_delta_prefill, (mixed, z, b, a), slices, conv_ref, state_ref
    )
    assert_close(o, expected, torch.float32)
    assert_close(state[1], state_ref[1], torch.float32)


def test_strong_decay_does_not_overflow(device: torch.device) -> None:
    """exp of a positive difference above the diagonal would be inf, and inf * 0 is NaN."""
    layer = Layer(device, "one head")
    layer.weights.A_log_N.fill_(3.0)
    layer.weights.dt_bias_N.fill_(8.0)
    inputs = layer.inputs(100)
    (conv, state), (conv_ref, state_ref) = layer.pools(), layer.pools()
    slices = [(1, 0, 100)]
    o = layer.prefill(gated_delta_prefill, inputs, slices, conv, state)
    expected = layer.prefill(reference.gated_delta_prefill, inputs, slices, conv_ref, state_ref)
    assert_close(o, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cut_on_the_grid_or_in_a_crowd_gives_the_same_bits(
    device: torch.device, dtype: torch.dtype
) -> None:
    layer = Layer(device, "one head", dtype)
    inputs = layer.inputs(150 + 70)
    conv, state = layer.pools()
    crowd = layer.prefill(gated_delta_prefill, inputs, [(1, 0, 150), (3, 5, 75)], conv, state)
    alone = layer.prefill(gated_delta_prefill, cut(inputs, 0, 150), [(2, 0, 150)], conv, state)
    assert torch.equal(crowd[:150], alone)
    assert torch.equal(state[1], state[2])
    for step in (64, 128):
        parts = [
            layer.prefill(gated_delta_prefill, cut(inputs, at, end), [(4, at, end)], conv, state)
            for at in range(0, 150, step)
            for end in [min(at + step, 150)]
        ]
        assert torch.equal(torch.cat(parts), alone)
        assert torch.equal(state[4], state[2])
        assert torch.equal(conv[4], conv[2])


def test_snapshots_equal_a_prefill_cut_there(device: torch.device) -> None:
    """On the grid, at an end off it, and of a slice so short that old columns remain."""
    layer = Layer(device, "one head", torch.float16)
    inputs = layer.inputs(150 + 2)
    slices = [(1, 10, 160), (2, 62, 64)]
    emits = {53: 3, 117: 4, 149: 5, 151: 6}
    conv, state = layer.pools()
    o = layer.prefill(gated_delta_prefill, inputs, slices, conv, state, emits)
    for rows, slot, end in ((54, 3, 64), (118, 4, 128), (150, 5, 160)):
        conv_cut, state_cut = layer.pools()
        part = layer.prefill(
            gated_delta_prefill, cut(inputs, 0, rows), [(1, 10, end)], conv_cut, state_cut
        )
        assert torch.equal(part, o[:rows])
        assert torch.equal(conv[slot], conv_cut[1])
        assert torch.equal(state[slot], state_cut[1])
    assert torch.equal(conv[6], conv[2])
    assert torch.equal(state[6], state[2])
    assert torch.equal(state[[0, 7]], layer.state[[0, 7]])


def test_launches_are_recorded_from_shapes_alone() -> None:
    """At the size of Qwen3.5-35B-A3B, with nothing on any device."""
    H, N, K, V, T, S = 16, 32, 128, 128, 300, 3
    C = 2 * H * K + N * V
    meta = torch.device("meta")
    weights = DeltaNetWeights(
        conv_CW=torch.empty(C, 4, dtype=torch.bfloat16, device=meta),
        A_log_N=torch.empty(N, device=meta),
        dt_bias_N=torch.empty(N, device=meta),
        norm_V=torch.empty(V, device=meta),
        eps=1e-6,
        num_key_heads=H,
    )
    fused = torch.empty(T, C + N * V + 2 * N, dtype=torch.bfloat16, device=meta)
    mixed, z, b, a = fused.split((C, N * V, N, N), dim=-1)
    inputs = (mixed, z.unflatten(-1, (N, V)), b, a)
    pools = {
        "conv_PCX": torch.empty(9, C, 3, dtype=torch.bfloat16, device=meta),
        "state_PNKV": torch.empty(9, N, K, V, device=meta),
    }
    slots = torch.empty(T, dtype=torch.int64, device=meta)
    bounds = torch.empty(S + 1, dtype=torch.int32, device=meta)
    with recording() as launches:
        gated_delta_decode(*inputs, weights, **pools, slot_B=slots)
        gated_delta_prefill(
            *inputs, weights, **pools, slot_S=slots[:S], start_S=bounds[:S], offset_S1=bounds
        )
    assert [launch.name for launch in launches] == [
        "decode",
        "convolve",
        "transform",
        "recur",
        "norm",
    ]
    states = 2 * T * N * K * V * 4
    assert states < launches[0].cost.moved_bytes < states * 1.1
    assert all(launch.cost.necessary_bytes <= launch.cost.moved_bytes for launch in launches)
