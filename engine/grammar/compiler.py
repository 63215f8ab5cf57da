"""Compiles grammars, and keeps the last ones: a request costs a copy, not a compilation.

Those that requests in the engine need are held besides, so that none is compiled twice for one.

All matchers of a compiled grammar share its lexer, and with it the limit on the states that answers
have led it into. Who runs into that limit gets a lexer of its own, once, and the shared one is
dropped: an answer fails by what it did itself.

Limits are llguidance's own and count work, not seconds, so that a grammar that is refused here is
refused everywhere. On a 2-core cloud CPU the slowest schema the server accepts that we know (2,000
optional properties) takes 0.4 s to compile, and up to 40 ms for a mask where all of them may come.
"""

import json
import threading
from collections import Counter, OrderedDict

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from engine.grammar.bits import packed
from engine.grammar.matcher import GrammarError, Matcher
from engine.grammar.numbers import NumberBound, NumberTokens
from engine.grammar.spec import GrammarSpec
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.waiting import FreeText

MAX_COMPILED = 64  # grammars kept that nobody holds

LIMITS = LLParserLimits(
    max_items_in_row=20_000,  # two per optional property that may come next
    step_max_items=2_000_000,
    step_lexer_fuel=2_000_000,
    initial_lexer_fuel=5_000_000,
    max_lexer_states=50_000,  # some 2 KB each
    verbose_errors=False,  # errors would quote the grammar
)

_NO_FORCING = '%llguidance {"no_forcing": true}\n'


class GrammarCompiler:
    """May be used from several threads at once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._free_texts: dict[tuple[int, tuple[int, ...]], FreeText] = {}
        self._holders: Counter[str] = Counter()  # by grammar, compiled or not yet
        self._lock = threading.Lock()
        self._number_tokens = NumberTokens(vocabulary)
        real = np.array([bool(text) for text in vocabulary.token_bytes], dtype=np.bool_)
        self._free = packed(real, num_words=vocabulary.num_words)
        real[list(vocabulary.eos_ids)] = True
        self._usable = packed(real, num_words=vocabulary.num_words)

    def matcher(self, spec: GrammarSpec, output_ids: tuple[int, ...] = ()) -> Matcher:
        """A matcher that has seen `output_ids`. Raises `GrammarError`."""
        matcher = Matcher(
            _Compilation(self, spec.grammar),
            self.vocabulary,
            usable=self._usable,
            free_text=self._free_text(spec),
            numbers=NumberBound(self._number_tokens) if spec.bounds_numbers else None,
        )
        for token_id in output_ids:
            if not matcher.accept(token_id):
                raise GrammarError(f"token {token_id} was generated and is not allowed")
        return matcher

    def hold(self, grammar: str) -> bool:
        """Keep `grammar`, once it is compiled, until `let_go`. True: it is compiled already."""
        with self._lock:
            self._holders[grammar] += 1
            return grammar in self._compiled

    def let_go(self, grammar: str) -> None:
        with self._lock:
            self._holders[grammar] -= 1
            if not self._holders[grammar]:
                del self._holders[grammar]
            self._evict()

    def shared(self, grammar: str) -> LLMatcher:
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
                return compiled
        # Not under the lock: two threads that compile the same grammar at once do no harm.
        return self.share(grammar, self.compile(grammar))

    def share(self, grammar: str, compiled: LLMatcher) -> LLMatcher:
        """Let later answers by `grammar` begin with `compiled`."""
        with self._lock:
            self._compiled[grammar] = compiled
            self._evict()
        return compiled

    def drop(self, grammar: str, compiled: LLMatcher) -> None:
        with self._lock:
            if self._compiled.get(grammar) is compiled:
                del self._compiled[grammar]

    def compile(self, grammar: str) -> LLMatcher:
        """Raises `GrammarError`."""
        compiled = LLMatcher(self.vocabulary.tokenizer, grammar, log_level=0, limits=LIMITS)
        if compiled.is_error():
            raise GrammarError(compiled.get_error())
        return compiled

    def _evict(self) -> None:
        """Drop the oldest that nobody holds, under the lock."""
        if len(self._compiled) <= MAX_COMPILED:
            return
        free = [grammar for grammar in self._compiled if grammar not in self._holders]
        for grammar in free[: max(0, len(free) - MAX_COMPILED)]:
            del self._compiled[grammar]

    def _free_text(self, spec: GrammarSpec) -> FreeText | None:
        if spec.after_token_id is None:
            return None
        kind = (spec.after_token_id, spec.banned_before)
        with self._lock:
            known = self._free_texts.get(kind)
        if known is None:  # of a model there are two: with tools, and without
            known = FreeText(self.vocabulary, spec, free=self._free)
            with self._lock:
                self._free_texts[kind] = known
        return known


class _Compilation:
    """Where one matcher has its compiled grammar from."""

    def __init__(self, compiler: GrammarCompiler, grammar: str) -> None:
        self._compiler = compiler
        self._grammar = grammar
        self._shared: LLMatcher | None = compiler.shared(grammar)  # None: it has one of its own
        self._is_forcing = True

    def first(self) -> LLMatcher:
        assert self._shared is not None
        return self._shared.deep_copy()

    def unforced(self) -> LLMatcher:
        """One by which any tokens may spell text that is forced; for later answers, too."""
        self._is_forcing = False
        compiled = self._compiler.compile(_unforced(self._grammar))
        if self._shared is not None:
            self._shared = self._compiler.share(self._grammar, compiled)
        return compiled.deep_copy()

    def own(self) -> LLMatcher | None:
        """One that shares nothing with other answers. None: the last one did not, either."""
        if self._shared is None:
            return None
        self._compiler.drop(self._grammar, self._shared)
        self._shared = None
        grammar = self._grammar if self._is_forcing else _unforced(self._grammar)
        return self._compiler.compile(grammar)


def _unforced(grammar: str) -> str:
    if not grammar.startswith("{"):
        return _NO_FORCING + grammar
    nested = json.loads(grammar)
    nested["grammars"][0]["lark_grammar"] = _NO_FORCING + nested["grammars"][0]["lark_grammar"]
    return json.dumps(nested)
