import random
import threading

import numpy as np
import pytest

from engine.grammar import GrammarCompiler, GrammarError, GrammarRows, GrammarSpec
from engine.grammar.compiler import MAX_COMPILED
from tests.engine.grammar.sampling import Babbler, allowed_ids

SPECS = [
    GrammarSpec(grammar="start: /([a-z] )*[0-9]{3}/"),
    GrammarSpec(grammar='start: %json {"type": "array", "items": {"type": "integer"}}'),
    GrammarSpec(grammar='start: ("yes" | "no" | "maybe") (" " /[0-9]+/)*'),
]


@pytest.fixture
def rows(babbler: Babbler):
    rows = GrammarRows(babbler.compiler, num_slots=6)
    yield rows
    rows.close()


def mask_of(rows: GrammarRows, slot: int) -> list[int]:
    mask = rows.mask(slot)
    assert mask is not None
    return allowed_ids(mask)


def test_a_slot_without_a_grammar_has_no_mask(rows: GrammarRows):
    rows.admit(1, None)
    rows.advance(1, 5)
    assert rows.mask(1) is None
    assert not rows.is_finished(1)


def test_masks_in_a_crowd_are_those_of_a_lone_answer(babbler: Babbler, rows: GrammarRows):
    rng = random.Random(0)
    alone = {slot: babbler.compiler.matcher(spec) for slot, spec in enumerate(SPECS, start=1)}
    for slot, spec in enumerate(SPECS, start=1):
        rows.admit(slot, spec)
    for _ in range(60):
        for slot, matcher in alone.items():
            allowed = mask_of(rows, slot)
            assert allowed == babbler.allowed(matcher)
            token_id = rng.choice(allowed)
            matcher.accept(token_id)
            rows.advance(slot, token_id)
            assert rows.is_finished(slot) is matcher.is_finished


def test_a_preempted_answer_resumes_in_another_slot(babbler: Babbler, rows: GrammarRows):
    rng = random.Random(1)
    rows.admit(1, SPECS[1])
    ids: list[int] = []
    for step in range(40):
        slot = 1 + step // 10
        if step % 10 == 0:
            rows.release(slot - 1)
            rows.admit(slot, SPECS[1], tuple(ids))
        expected = babbler.allowed(babbler.compiler.matcher(SPECS[1], tuple(ids)))
        assert mask_of(rows, slot) == expected
        ids.append(rng.choice(expected))
        rows.advance(slot, ids[-1])


def test_several_tokens_at_once_are_several_steps(babbler: Babbler, rows: GrammarRows):
    ids = babbler.encode("a b c 12")
    rows.admit(2, SPECS[0])
    rows.advance(2, *ids)
    assert mask_of(rows, 2) == babbler.allowed(babbler.compiler.matcher(SPECS[0], tuple(ids)))


def test_a_new_answer_does_not_see_the_one_before(babbler: Babbler, rows: GrammarRows):
    start = babbler.allowed(babbler.compiler.matcher(SPECS[2]))
    for _ in range(30):
        rows.admit(3, SPECS[1])
        rows.advance(3, babbler.id_of("["))
        rows.admit(3, SPECS[2])
        assert mask_of(rows, 3) == start


def test_a_grammar_that_fails_fails_its_own_slot_only(babbler: Babbler, rows: GrammarRows):
    rows.admit(1, GrammarSpec(grammar="start: ("))
    rows.admit(2, SPECS[0])
    rows.admit(3, SPECS[0])
    rows.advance(3, babbler.id_of("]"))
    for slot in (1, 3):
        with pytest.raises(GrammarError):
            rows.mask(slot)
    assert mask_of(rows, 2)
    rows.admit(1, SPECS[0])
    assert mask_of(rows, 1) == mask_of(rows, 2)


def test_preparing_compiles(babbler: Babbler, rows: GrammarRows):
    spec = GrammarSpec(grammar='start: "prepared"')
    rows.prepare(spec).result()
    assert spec.grammar in babbler.compiler._compiled  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(GrammarError):
        rows.prepare(GrammarSpec(grammar="start: )")).result()


def test_a_mask_fits_the_padded_vocabulary(babbler: Babbler, rows: GrammarRows):
    rows.admit(1, SPECS[0])
    mask = rows.mask(1)
    assert mask is not None
    assert mask.dtype == np.int32
    assert len(mask) == -(-babbler.vocabulary.num_rows // 32)


def test_what_is_prepared_stays_until_it_is_let_go(babbler: Babbler):
    compiler = GrammarCompiler(babbler.vocabulary)
    rows = GrammarRows(compiler, num_slots=1)
    spec = GrammarSpec(grammar='start: "kept"')
    for _ in range(2):
        rows.prepare(spec).result()
    for index in range(MAX_COMPILED + 5):
        compiler.matcher(GrammarSpec(grammar=f'start: "other {index}"'))
    compiled = compiler._compiled  # pyright: ignore[reportPrivateUsage]
    assert spec.grammar in compiled
    assert rows.prepare(spec).done(), "nothing is compiled twice"
    for is_kept in (True, True, False):
        rows.let_go(spec)
        assert (spec.grammar in compiled) is is_kept
    assert len(compiled) <= MAX_COMPILED
    rows.close()


def test_masks_do_not_wait_behind_grammars_that_compile(babbler: Babbler):
    rows = GrammarRows(babbler.compiler, num_slots=2, num_threads=1)
    blocked = threading.Event()
    begun = rows._compilers.submit(blocked.wait)  # pyright: ignore[reportPrivateUsage]
    try:
        waiting = rows.prepare(GrammarSpec(grammar='start: "behind it"'))
        rows.admit(1, SPECS[2])
        assert mask_of(rows, 1)
        assert not waiting.done()
    finally:
        blocked.set()
    assert begun.result()
    waiting.result()
    rows.close()
