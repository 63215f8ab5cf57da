import random

import torch

from engine.plan import PAGE_TOKENS, Admit, Slice, StepPlan
from engine.request import SamplingParams
from engine.runner.batch import BatchBuilder
from engine.runner.positions import SlotPositions
from engine.runner.rows import Rows

GREEDY = SamplingParams(max_tokens=9, seed=0, temperature=0)


def make(num_slots: int) -> tuple[Rows, BatchBuilder]:
    rows = Rows(num_slots=num_slots, num_real_tokens=1000)
    positions = SlotPositions(num_slots)
    builder = BatchBuilder(
        rows, positions, num_slots=num_slots, max_step_tokens=9000, max_pages=9000
    )
    return rows, builder


def part(
    slot: int,
    start: int,
    ids: tuple[int, ...],
    pages: tuple[int, ...],
    *,
    decodes: bool = False,
    num_tokens: int | None = None,
) -> Slice:
    return Slice(
        request_id=f"r{slot}",
        epoch=0,
        slot=slot,
        start=start,
        num_tokens=len(ids) if num_tokens is None else num_tokens,
        token_ids=ids,
        pages=pages,
        decodes=decodes,
        samples=True,
    )


def expect(builder: BatchBuilder, rows: Rows, plan: StepPlan) -> None:
    """Build the plan, and compare with the same thing written out token by token."""
    inputs = builder.inputs(builder.send(plan))
    ids, positions, locations = [], [], []
    for piece in plan.slices:
        known = piece.token_ids or (int(rows.last_token_P[piece.slot]),)
        for i in range(piece.num_tokens):
            position = piece.start + i
            ids.append(known[i])
            positions.append(position)
            page = piece.pages[position // PAGE_TOKENS]
            locations.append(page * PAGE_TOKENS + position % PAGE_TOKENS)
    assert inputs.token_id_T.tolist() == ids
    assert inputs.position_T.tolist() == positions
    assert inputs.location_T.tolist() == locations

    decodes = [piece for piece in plan.slices if piece.decodes]
    prefills = [piece for piece in plan.slices if not piece.decodes]
    assert inputs.num_decodes == len(decodes)
    assert inputs.num_prefills == len(prefills)
    assert inputs.decode_slot_B.tolist() == [piece.slot for piece in decodes]
    assert inputs.decode_length_B.tolist() == [piece.start + 1 for piece in decodes]
    assert inputs.prefill_slot_S.tolist() == [piece.slot for piece in prefills]
    assert inputs.prefill_start_S.tolist() == [piece.start for piece in prefills]
    offsets = [sum(piece.num_tokens for piece in prefills[:i]) for i in range(len(prefills) + 1)]
    assert inputs.prefill_offset_S1.tolist() == offsets
    for table, pieces in (
        (inputs.decode_page_BM, decodes),
        (inputs.prefill_page_SM, prefills),
    ):
        width = max((len(piece.pages) for piece in pieces), default=0)
        padded = [[*piece.pages, *[0] * (width - len(piece.pages))] for piece in pieces]
        assert table.tolist() == padded
        assert table.dtype == torch.int32
        assert table.is_contiguous()
    for tensor in (inputs.token_id_T, inputs.position_T, inputs.location_T):
        assert tensor.dtype == torch.int64
    for tensor in (inputs.decode_slot_B, inputs.prefill_slot_S):
        assert tensor.dtype == torch.int64
    for tensor in (inputs.decode_length_B, inputs.prefill_start_S, inputs.prefill_offset_S1):
        assert tensor.dtype == torch.int32


def test_random_traffic_against_a_naive_builder() -> None:
    rng = random.Random(0)
    num_slots = 6
    rows, builder = make(num_slots)
    lengths, pages = [0] * num_slots, [()] * num_slots
    for _ in range(200):
        admits, decodes, prefills = [], [], []
        for slot in rng.sample(range(1, num_slots), rng.randint(1, num_slots - 1)):
            if lengths[slot] == 0 or rng.random() < 0.05:
                admits.append(Admit(slot, 1, (rng.randrange(1000),), GREEDY))
                lengths[slot], pages[slot] = 0, ()
            prefill = lengths[slot] % PAGE_TOKENS == 0 and (
                lengths[slot] == 0 or rng.random() < 0.7
            )
            num_tokens = rng.choice([1, 63, 64, 65, 128, 1600]) if prefill else 1
            start, lengths[slot] = lengths[slot], lengths[slot] + num_tokens
            while len(pages[slot]) * PAGE_TOKENS < lengths[slot] + rng.choice([0, 64]):
                pages[slot] += (rng.randrange(1, 5000),)
            ids = tuple(rng.randrange(1000) for _ in range(num_tokens))
            if prefill:
                prefills.append(part(slot, start, ids, pages[slot]))
            else:
                known = ids if rng.random() < 0.3 else ()
                decodes.append(part(slot, start, known, pages[slot], decodes=True, num_tokens=1))
        for admit in admits:
            rows.admit(admit)
            builder.forget(admit.slot)
        expect(builder, rows, StepPlan((*decodes, *prefills), tuple(admits)))
        for slot in range(1, num_slots):
            rows.last_token_P[slot] = rng.randrange(1000)


def test_a_new_owner_of_a_slot_sees_none_of_the_old_pages() -> None:
    rows, builder = make(3)
    builder.send(StepPlan((part(1, 0, (5,) * 130, (7, 8, 9)),)))
    builder.forget(1)
    expect(
        builder,
        rows,
        StepPlan((part(1, 0, (6,), (4,)), part(2, 0, (6,) * 65, (5, 6)))),
    )


def test_padding_rows_share_the_scratch_slot_and_page() -> None:
    rows, builder = make(2)
    scratch = part(0, 5, (1,), (0,), decodes=True)
    expect(builder, rows, StepPlan((scratch,) * 4))


def test_all_pages_of_long_cached_prompts_may_come_at_once() -> None:
    """Many more than the step has tokens: each sequence computes the end of its prompt only."""
    num_slots, max_pages = 5, 500
    rows = Rows(num_slots=num_slots, num_real_tokens=1000)
    builder = BatchBuilder(
        rows,
        SlotPositions(num_slots),
        num_slots=num_slots,
        max_step_tokens=4,
        max_pages=max_pages,
    )
    pages = tuple(range(1, max_pages + 1))
    start = max_pages * PAGE_TOKENS - 1
    plan = StepPlan(tuple(part(slot, start, (7,), pages) for slot in range(1, num_slots)))
    expect(builder, rows, plan)
