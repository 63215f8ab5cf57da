"""Paged attention in Triton against its reference, and a row against itself in other company."""

import pytest
import torch

from kernels import paged_attention
from kernels.arrivals import arrivals
from kernels.paged_attention import reference
from tests.kernels.triton.even_products import even_products

__all__ = ["even_products"]

# fp32: sums of some hundred terms. Halves: weights and output keep 11 bits, or 8.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}

# H, G, E, tokens per page: groups of query heads; no groups, dims and pages of odd sizes.
SHAPES = {"grouped": (6, 2, 32, 64), "odd": (2, 2, 20, 48)}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert not actual.isnan().any()
    largest = expected.double().abs().max().item() if expected.numel() else 1.0
    error = (actual.double() - expected.double()).abs()
    assert (error <= TOLERANCE[actual.dtype] * largest).all(), error.max().item() / largest


class Sequences:
    """Sequences in pages in a wild order; every token that no row may see is NaN."""

    def __init__(
        self,
        lengths: list[int],
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _, G, E, page_tokens = shape
        self.lengths, self.shape, self.dtype, self.device = lengths, shape, dtype, device
        pages = [-(-length // page_tokens) for length in lengths]
        order = (torch.randperm(sum(pages)) + 1).tolist()
        self.table = torch.zeros(len(lengths), max(pages, default=0) + 3, dtype=torch.int32)
        self.kv = torch.full((sum(pages) + 1, 2, G, page_tokens, E), float("nan"), dtype=dtype)
        for s, length in enumerate(lengths):
            for m in range(pages[s]):
                page = self.table[s, m] = order.pop()
                count = min(page_tokens, length - m * page_tokens)
                self.kv[page, :, :, :count] = torch.randn(2, G, count, E).to(dtype)
        self.table, self.kv = self.table.to(device)[:, :-2], self.kv.to(device)

    def queries(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries, and the projection whose second halves are the gates: rows with gaps."""
        H, _, E, _ = self.shape
        q = torch.randn(rows, H * E + 16).to(self.dtype)[:, 16:].unflatten(-1, (H, E))
        qg = torch.randn(rows, 2 * H * E + 16).to(self.dtype)[:, :-16].unflatten(-1, (H, 2 * E))
        return q.to(self.device), qg.to(self.device)

    def lengths_of(self, rows: slice) -> torch.Tensor:
        return torch.tensor(self.lengths, dtype=torch.int32, device=self.device)[rows]

    def run(self, function: object, q: torch.Tensor, qg: torch.Tensor, rows: slice) -> torch.Tensor:
        """Decode, or windows: of the sequences `rows`."""
        return function(
            q,
            qg,
            kv_P2GOE=self.kv,
            page_BM=self.table[rows],
            length_B=self.lengths_of(rows),
            scale=self.shape[2] ** -0.5,
        )

    def prefill(
        self, op: object, q: torch.Tensor, qg: torch.Tensor, slices: list[tuple[int, int, int]]
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
            start_S=torch.tensor([x for _, x, _ in slices], dtype=torch.int32, device=self.device),
            offset_S1=torch.tensor(offset, dtype=torch.int32, device=self.device),
            scale=self.shape[2] ** -0.5,
        )


ALL = slice(None)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_decode(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    sequences = Sequences([1, 63, 64, 65, 0, 130, 600], shape, dtype, device)
    q, qg = sequences.queries(7)
    o = sequences.run(paged_attention.attention_decode, q, qg, ALL)
    assert_close(o, sequences.run(reference.attention_decode, q, qg, ALL))
    assert not o[4].any()
    assert not arrivals(device).any()


def test_decode_of_nothing(device: torch.device) -> None:
    sequences = Sequences([], SHAPES["grouped"], torch.float32, device)
    o = sequences.run(paged_attention.attention_decode, *sequences.queries(0), ALL)
    assert o.shape == (0, 6 * 32)


@pytest.mark.usefixtures("even_products")
def test_decode_bits_do_not_depend_on_the_batch(device: torch.device) -> None:
    """With 8 KV heads a row has at most 24 splits; 1600 tokens need longer ones, in 2 groups."""
    lengths = [1600, 1, 0, 65, 3, 3, 129, 64]
    sequences = Sequences(lengths, (8, 8, 16, 64), torch.float32, device)
    q, qg = sequences.queries(8)
    o = sequences.run(paged_attention.attention_decode, q, qg, ALL)
    assert_close(o, sequences.run(reference.attention_decode, q, qg, ALL))
    for rows in (slice(0, 1), slice(3, 4), slice(6, 8)):
        alone = sequences.run(paged_attention.attention_decode, q[rows], qg[rows], rows)
        assert torch.equal(alone, o[rows])
    assert not arrivals(device).any()


@pytest.mark.usefixtures("even_products")
def test_decode_of_more_rows_than_one_launch_takes(device: torch.device) -> None:
    sequences = Sequences([1 + row % 5 for row in range(66)], (2, 1, 16, 16), torch.float32, device)
    q, qg = sequences.queries(66)
    o = sequences.run(paged_attention.attention_decode, q, qg, ALL)
    assert_close(o, sequences.run(reference.attention_decode, q, qg, ALL))
    last = slice(65, 66)
    alone = sequences.run(paged_attention.attention_decode, q[last], qg[last], last)
    assert torch.equal(alone, o[last])


@pytest.mark.parametrize("W", [2, 5])
def test_window(W: int, dtype: torch.dtype, device: torch.device) -> None:
    sequences = Sequences([W, 0, 64 + W, 130], SHAPES["grouped"], dtype, device)
    q, qg = sequences.queries(4 * W)
    o = sequences.run(paged_attention.attention_window, q, qg, ALL)
    expected = sequences.run(reference.attention_window, q, qg, ALL)
    assert_close(o, expected)
    assert not o[W : 2 * W].any()


def test_window_on_the_cpu() -> None:
    sequences = Sequences([3, 65, 0], SHAPES["grouped"], torch.float32, torch.device("cpu"))
    q, qg = sequences.queries(9)
    o = sequences.run(paged_attention.attention_window, q, qg, ALL)
    assert_close(o, sequences.run(reference.attention_window, q, qg, ALL))
    last = sequences.run(reference.attention_decode, q[2::3], qg[2::3], ALL)
    assert_close(o[2::3], last)
    before = sequences.lengths_of(ALL) - 1
    sequences.lengths = before.clamp(min=0).tolist()
    assert_close(o[1::3], sequences.run(reference.attention_decode, q[1::3], qg[1::3], ALL))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_prefill(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> None:
    sequences = Sequences([100, 1, 200, 64, 7], shape, dtype, device)
    slices = [(0, 0, 100), (1, 0, 1), (2, 130, 200), (3, 64, 64), (4, 5, 7)]
    q, qg = sequences.queries(100 + 1 + 70 + 0 + 2)
    o = sequences.prefill(paged_attention, q, qg, slices)
    assert_close(o, sequences.prefill(reference, q, qg, slices))


def test_prefill_of_more_slices_than_a_program_counts_at_once(device: torch.device) -> None:
    sequences = Sequences(66 * [3], (1, 1, 16, 16), torch.float32, device)
    slices = [(s, 2 - s % 3, 3 if s % 7 else 2 - s % 3) for s in range(66)]
    q, qg = sequences.queries(sum(end - start for _, start, end in slices))
    o = sequences.prefill(paged_attention, q, qg, slices)
    assert_close(o, sequences.prefill(reference, q, qg, slices))


def test_prefill_of_nothing(device: torch.device) -> None:
    sequences = Sequences([64], SHAPES["grouped"], torch.float32, device)
    q, qg = sequences.queries(0)
    assert sequences.prefill(paged_attention, q, qg, []).shape == (0, 6 * 32)
    assert sequences.prefill(paged_attention, q, qg, [(0, 64, 64)]).shape == (0, 6 * 32)


@pytest.mark.usefixtures("even_products")
@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_prefill_cut_anywhere_or_in_a_crowd_gives_the_same_bits(
    length: int, device: torch.device
) -> None:
    sequences = Sequences([length, 70], (2, 1, 16, 16), torch.float32, device)
    q, qg = sequences.queries(length + 70)
    crowd = sequences.prefill(paged_attention, q, qg, [(1, 0, 70), (0, 0, length)])
    alone = sequences.prefill(paged_attention, q[70:], qg[70:], [(0, 0, length)])
    assert torch.equal(crowd[70:], alone)
    for cut in {64, length - length // 3} & set(range(1, length)):
        parts = [
            sequences.prefill(paged_attention, q[70:][rows], qg[70:][rows], [(0, *at)])
            for at in ((0, cut), (cut, length))
            for rows in [slice(*at)]
        ]
        assert torch.equal(torch.cat(parts), alone)
