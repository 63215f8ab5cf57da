"""What a request demands of the shape of its answer, read into a grammar for the engine.

reader    request fields -> `GrammarSpec`: the way in
calls     tools -> the grammar of the model's XML calls
schema    JSON schemas, checked and brought into the form the grammar engine takes; with its parts
          refs, formats, strings, finite and disjoint
structural_tags  free text, and tags in it whose content has a shape; `grammar_text` writes it down
regex     clients' regular expressions
lark      clients' grammars; `client_grammar` is either notation of one, and its lines
blame     the part of a schema that keeps it from compiling
checker   compiles what came out in a process that can be killed (`worker`); `grammar_queue` is the
          line of the requests that wait for that
"""

from server.constraints.checker import GrammarChecker, KnownGrammars, NotCompiled
from server.constraints.grammar_queue import GrammarQueue
from server.constraints.reader import FIELDS, ConstraintReader, binds_content, bound_calls

__all__ = [
    "FIELDS",
    "ConstraintReader",
    "GrammarChecker",
    "GrammarQueue",
    "KnownGrammars",
    "NotCompiled",
    "binds_content",
    "bound_calls",
]
