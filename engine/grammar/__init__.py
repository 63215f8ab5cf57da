"""Grammars: which token may come next, so that the answer has the shape that was asked for.

spec        GrammarSpec, what crosses the process boundary
vocabulary  the bytes behind the ids
compiler    grammar text -> compiled, with a bounded cache
matcher     one answer: ids in, masks out
waiting     the free text before a grammar begins
numbers     JSON numbers are kept short and finite
rows        one matcher per running sequence, computed beside the model
bits        masks as words

llguidance does the matching: an Earley parser over lexemes whose automata are built as needed, so
nothing is precomputed over the vocabulary. `tests/benchmarks/grammar.py` says how it was chosen.
"""

from engine.grammar.compiler import GrammarCompiler
from engine.grammar.matcher import GrammarError, Matcher
from engine.grammar.rows import GrammarRows
from engine.grammar.spec import GrammarSpec
from engine.grammar.vocabulary import Vocabulary

__all__ = [
    "GrammarCompiler",
    "GrammarError",
    "GrammarRows",
    "GrammarSpec",
    "Matcher",
    "Vocabulary",
]
