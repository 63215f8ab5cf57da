"""Paged attention against fp64 softmax attention, transformers, and itself in other company."""

from types import ModuleType

import pytest
import torch

import kernels.paged_attention
from kernels.paged_attention import reference
from tests.kernels.closeness import assert_close

# H, G, E, tokens per page: the family's head dim, a small one, and one of odd vectors and pages.
SHAPES = {"family": (16, 2, 256, 64), "demo": (8, 2, 64, 64), "odd": (6, 2, 40, 16)}


@pytest.fixture(params=[reference, kernels.paged_attention], ids=["reference", "cpu"])
def op(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


class Sequences:
    """Sequences of given lengths in pages in a wild order; every token no row may see is NaN."""

    def __init__(self, lengths: list[int], shape: str, dtype: torch.dtype) -> None:
        self.H, self.G, self.E, self.page_tokens = SHAPES[shape]
        self.lengths = lengths
        self.dtype = dtype
        self.scale = self.E**-0.5
        pages = [-(-max(length, 1) // self.page_tokens) for length in lengths]
        order = (torch.randperm(sum(pages)) + 1).tolist()
        self.table = torch.zeros(len(lengths), max(pages, default=1), dtype=torch.int32)
        self.kv = torch.full(
            (sum(pages) + 1, 2, self.G, self.page_tokens, self.E), float("nan"), dtype=dtype
        )
        self.k, self.v = [], []
        for s, (length, num_pages) in enumerate(zip(lengths, pages, strict=True)):
            for m in range(num_pages):
                self.table[s, m] = order.pop()
            k, v = torch.randn(2, length, self.G, self.E).to(dtype)
            for t in range(length):
                page = self.table[s, t // self.page_tokens]
                self.kv[page, 0, :, t % self.page_tokens] = k[t]
                self.kv[page, 1, :, t % self.page_tokens] = v[t]
            self.k.append(k)
            self.v.append(v)

    def queries(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and the projection whose second halves are the gates, as strided views."""
        q = (torch.randn(rows, self.H, self.E) * 2).to(self.dtype)
        fused = torch.randn(rows, self.H * 2 * self.E + 24).to(self.dtype)
        return q, fused[:, : self.H * 2 * self.E].unflatten(-1, (self.H, 2 * self.E))

    def oracle(self, s: int, position: int, q: torch.Tensor, qg: torch.Tensor) -> torch.Tensor:
        """One row, head by head, in fp64."""
        heads = []
        for h in range(self.H):
            g = h // (self.H // self.G)
            k, v = self.k[s][: position + 1, g].double(), self.v[s][: position + 1, g].double()
            weight = (k @ q[h].double() * self.scale).softmax(0)
            heads.append(weight @ v * torch.sigmoid(qg[h, self.E :].double()))
        return torch.cat(heads)

    def decode(self, op: ModuleType, q: torch.Tensor, qg: torch.Tensor) -> torch.Tensor:
        return op.attention_decode(
            q,
            qg,
            kv_P2GOE=self.kv,
            page_BM=self.table,
            length_B=torch.tensor(self.lengths, dtype=torch.int32),
            scale=self.scale,
        )

    def prefill(
        self, op: ModuleType, q: torch.Tensor, qg: torch.Tensor, slices: list[tuple[int, int, int]]
    ) -> torch.Tensor:
        """Run (sequence, start, end) slices; q and qg hold their rows, packed."""
        offset = [0]
        for _, start, end in slices:
            offset.append(offset[-1] + end - start)
        return op.attention_prefill(
            q,
            qg,
            kv_P2GOE=self.kv,
            page_SM=self.table[[s for s, _, _ in slices]],
            start_S=torch.tensor([start for _, start, _ in slices], dtype=torch.int32),
            offset_S1=torch.tensor(offset, dtype=torch.int32),
            scale=self.scale,
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_decode(op: ModuleType, shape: str, dtype: torch.dtype) -> None:
    sequences = Sequences([1, 2, 7, 63, 64, 65, 100, 2300], shape, dtype)  # 2300: three parts
    q, qg = sequences.queries(8)
    o = sequences.decode(op, q, qg)
    assert o.dtype == dtype
    expected = [
        sequences.oracle(s, length - 1, q[s], qg[s]) for s, length in enumerate(sequences.lengths)
    ]
    assert_close(o, torch.stack(expected), dtype)


def test_decode_padding_and_nothing(op: ModuleType, dtype: torch.dtype) -> None:
    sequences = Sequences([70, 0, 3], "demo", dtype)
    sequences.table[1] = 0  # padding: scratch page, which holds NaN here
    q, qg = sequences.queries(3)
    o = sequences.decode(op, q, qg)
    assert not o[1].any()
    assert_close(o[2], sequences.oracle(2, 2, q[2], qg[2]), dtype)
    nothing = Sequences([], "demo", dtype)
    assert nothing.decode(op, *nothing.queries(0)).shape == (0, 8 * 64)


def test_decode_bits_do_not_depend_on_the_batch(op: ModuleType, dtype: torch.dtype) -> None:
    sequences = Sequences([5, 1500, 64, 200, 63, 1, 90, 65, 128], "demo", dtype)
    q, qg = sequences.queries(9)
    o = sequences.decode(op, q, qg)
    for rows in (1, 2, 7, 8):
        few = slice(9 - rows, None)
        alone = op.attention_decode(
            q[few],
            qg[few],
            kv_P2GOE=sequences.kv,
            page_BM=sequences.table[few],
            length_B=torch.tensor(sequences.lengths[few], dtype=torch.int32),
            scale=sequences.scale,
        )
        assert torch.equal(alone, o[few])


@pytest.mark.parametrize("shape", SHAPES)
def test_prefill(op: ModuleType, shape: str, dtype: torch.dtype) -> None:
    sequences = Sequences([100, 1, 200, 64, 7], shape, dtype)
    slices = [(0, 0, 100), (1, 0, 1), (2, 130, 200), (3, 64, 64), (4, 5, 7)]
    rows = [(s, position) for s, start, end in slices for position in range(start, end)]
    q, qg = sequences.queries(len(rows))
    o = sequences.prefill(op, q, qg, slices)
    expected = [sequences.oracle(s, at, q[i], qg[i]) for i, (s, at) in enumerate(rows)]
    assert_close(o, torch.stack(expected), dtype)


def test_prefill_of_nothing(op: ModuleType, dtype: torch.dtype) -> None:
    sequences = Sequences([64], "demo", dtype)
    q, qg = sequences.queries(0)
    assert sequences.prefill(op, q, qg, []).shape == (0, 8 * 64)
    assert sequences.prefill(op, q, qg, [(0, 64, 64)]).shape == (0, 8 * 64)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 300])
def test_prefill_cut_on_the_grid_or_in_a_crowd_gives_the_same_bits(
    op: ModuleType, length: int, dtype: torch.dtype
) -> None:
    sequences = Sequences([length, 150], "demo", dtype)
    q, qg = sequences.queries(length + 150)
    crowd = sequences.prefill(op, q, qg, [(0, 0, length), (1, 0, 150)])
    alone = sequences.prefill(op, q[:length], qg[:length], [(0, 0, length)])
    assert torch.equal(crowd[:length], alone)
    for step in (64, 128):
        parts = [
            sequences.prefill(op, q[at:end], qg[at:end], [(0, at, end)])
            for at in range(0, length, step)
            for end in [min(at + step, length)]
        ]
        assert torch.equal(torch.cat(parts), alone)
    # A longer prompt with the same beginning: rows before the end do not see the rest.
    shorter = length - length // 3
    ended = sequences.prefill(op, q[:shorter], qg[:shorter], [(0, 0, shorter)])
    assert torch.equal(ended, alone[:shorter])


def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    sequences = Sequences([2300, 300], "demo", dtype)
    q, qg = sequences.queries(300)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(
                (
                    sequences.decode(kernels.paged_attention, q[:2], qg[:2]),
                    sequences.prefill(kernels.paged_attention, q, qg, [(1, 0, 300)]),
                )
            )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_transformers_agrees(op: ModuleType) -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_5_moe.modeling_qwen3_5_moe")
    length = 100
    sequences = Sequences([length], "demo", torch.float32)
    q, qg = sequences.queries(length)
    module = torch.nn.Module()
    module.num_key_value_groups = sequences.H // sequences.G
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    k, v = (x.transpose(0, 1)[None] for x in (sequences.k[0], sequences.v[0]))
    expected, _ = modeling.eager_attention_forward(
        module.eval(), q.transpose(0, 1)[None], k, v, mask, sequences.scale
    )
    expected = expected[0].flatten(1) * torch.sigmoid(qg[..., sequences.E :].flatten(1))
    o = sequences.prefill(op, q, qg, [(0, 0, length)])
    assert_close(o, expected, torch.float32)
    last = sequences.decode(op, q[-1:], qg[-1:])
    assert_close(last[0], expected[-1], torch.float32)
