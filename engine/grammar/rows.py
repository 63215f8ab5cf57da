"""The grammars of the running sequences, one per slot, kept ahead of the model.

`advance` hands a token to a small pool of threads and returns at once; the mask for the token after
it is computed while the model runs its next step, and `mask` waits for it just before sampling.
llguidance does its work without the interpreter lock. Grammars are compiled by threads of their
own before their sequences are admitted, so that no mask waits behind a slow one.

All methods but `prepare` and `let_go` belong to one thread, the runner's. The jobs of one sequence
run in order: each waits for the one before it, which was queued earlier, so it is never the one
that keeps it from running.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from engine.grammar.bits import Mask
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.matcher import GrammarError, Matcher
from engine.grammar.spec import GrammarSpec

TIME_LIMIT_S = 10.0  # a step never waits longer: the sequence fails instead


@dataclass(slots=True, eq=False)
class _Row:
    mask: Mask
    ready: "Future[Matcher]"  # done: `mask` says what may come next


class GrammarRows:
    def __init__(self, compiler: GrammarCompiler, *, num_slots: int, num_threads: int = 2) -> None:
        self._compiler = compiler
        self._rows: list[_Row | None] = [None] * num_slots
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar")
        self._compilers = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar-compile")

    @property
    def token_bytes(self) -> Sequence[bytes]:
        return self._compiler.vocabulary.token_bytes

    def close(self) -> None:
        self._compilers.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)

    def prepare(self, spec: GrammarSpec) -> "Future[None]":
        """Compile a grammar before its sequence is admitted, and keep it until `let_go`.

        May be called by another thread than the runner's, as may `let_go`. The future raises
        `GrammarError`.
        """
        if not self._compiler.hold(spec.grammar):
            return self._compilers.submit(_prepare, self._compiler, spec)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def let_go(self, spec: GrammarSpec) -> None:
        self._compiler.let_go(spec.grammar)

    def admit(self, slot: int, spec: GrammarSpec | None, output_ids: tuple[int, ...] = ()) -> None:
        """A sequence starts, or resumes, in `slot`, whatever was in it. None: it is free."""
        self.release(slot)
        if spec is None:
            return
        mask = np.zeros(self._compiler.vocabulary.num_words, dtype=np.int32)
        ready = self._pool.submit(_start, self._compiler, spec, output_ids, mask)
        self._rows[slot] = _Row(mask, ready)

    def advance(self, slot: int, *token_ids: int) -> None:
        """Tokens were sampled in `slot`. Free slots and tokens past the end are fine."""
        row = self._rows[slot]
        if row is not None:
            row.ready = self._pool.submit(_advance, row.ready, token_ids, row.mask)

    def mask(self, slot: int) -> Mask | None:
        """What may come next in `slot`, valid until it advances; None: anything.

        Raises `GrammarError` when the grammar could not be followed: the sequence has to fail.
        """
        row = self._rows[slot]
        if row is None:
            return None
        _done(row.ready)
        return row.mask

    def is_finished(self, slot: int) -> bool:
        """Whether only an end token may follow in `slot`."""
        row = self._rows[slot]
        return row is not None and _done(row.ready).is_finished

    def release(self, slot: int) -> None:
        """Forget what is in `slot`. Jobs that still run write to a mask nobody looks at."""
        row, self._rows[slot] = self._rows[slot], None
        if row is not None:
            row.ready.cancel()


def _done(ready: "Future[Matcher]") -> Matcher:
    try:
        return ready.result(timeout=TIME_LIMIT_S)
    except TimeoutError:
        raise GrammarError(f"no mask within {TIME_LIMIT_S:.0f} s") from None


def _prepare(compiler: GrammarCompiler, spec: GrammarSpec) -> None:
    compiler.matcher(spec).fill(np.zeros(compiler.vocabulary.num_words, dtype=np.int32))


def _start(
    compiler: GrammarCompiler,
    spec: GrammarSpec,
    output_ids: tuple[int, ...],
    mask: Mask,
) -> Matcher:
    matcher = compiler.matcher(spec, output_ids)
    matcher.fill(mask)
    return matcher


def _advance(before: "Future[Matcher]", token_ids: tuple[int, ...], mask: Mask) -> Matcher:
    matcher = before.result()
    for token_id in token_ids:
        if not matcher.accept(token_id):
            raise GrammarError(f"token {token_id} was sampled and is not allowed")
    matcher.fill(mask)
    return matcher
