"""Grammar engines on a real vocabulary: set-up, compiling, masks per token, coverage.

    python -m tests.benchmarks.grammar tokenizer.json [--rows N] [--engine ours|xgrammar]

`ours` is llguidance as it is served; xgrammar has to be installed beside (it brings torch and
transformers). Each case is a schema, one document that fits, walked in three layouts, and one that
does not. Times are CPU time of the one thread that works, so that other load does not count; the
first walk of a grammar builds its automata and is part of the figures.

How the engine was chosen, on the tokenizer of Qwen3.5 (248,077 tokens, 248,320 rows), with
llguidance 1.9.1 behind our own form of schemas, and xgrammar 0.2.8, on a 2-core cloud CPU, November
2026, one run of each:

                                        ours               xgrammar
    set-up of the vocabulary            1.4 s, 153 MiB     0.8 s, 190 MiB
    compiling, median / slowest         1.3 / 33 ms        72 ms / 6.8 s (bounded strings)
    mask, median / p99 / max, ms        0.02 / 1.1 / 1.7   0.02 / 10 / 12 (500 properties)
    of 33 schemas: enforced             29                 21
      refused                           4                  none
      not as they say                   none               12

The four are `contains`, `unevaluatedProperties`, anchors and `$dynamicRef`. Of the twelve, ten take
a document that does not fit (these four, `allOf`, `not`, `if`, `uniqueItems`, `dependentRequired`
and `dependentSchemas` among them), and two refuse one that does (`const` and `patternProperties`).

llguidance refuses what it cannot enforce, compiles as fast as a request is read, and needs neither
torch nor transformers. It is kept up: 12 releases since 1.4.0, which is a year old.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

END_TOKENS = ("<|im_end|>", "<|endoftext|>")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 4},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
}
WORDS = [f"entry-{i:04d}-{(i * 7919) % 10007:05d}" for i in range(5000)]

# Name, schema, a document that fits, and one that does not.
CASES: list[tuple[str, Any, Any, Any]] = [
    ("enum", {"enum": ["red", "green", "blue", 3, None]}, "green", "pink"),
    ("object", PERSON, {"name": "Ada Lovelace", "age": 36, "tags": ["maths"]}, {"name": "Ada"}),
    (
        "nested",
        {
            "type": "object",
            "properties": {"team": {"type": "array", "items": PERSON, "minItems": 1}},
            "required": ["team"],
            "additionalProperties": False,
        },
        {"team": [{"name": f"Person {i}", "age": 20 + i, "tags": ["x", "yy"]} for i in range(8)]},
        {"team": []},
    ),
    (
        "anyOf",
        {"anyOf": [PERSON, {"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
        [1.5, -2, 3e10, 0.001],
        "text",
    ),
    (
        "recursive",
        TREE,
        {"value": 1, "children": [{"value": 2, "children": []}, {"value": -30, "children": []}]},
        {"value": 1},
    ),
    (
        "pattern",
        {
            "type": "object",
            "properties": {
                "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[A-Z]{1,2} [0-9]{1,4}$"},
                "phone": {"type": "string", "pattern": "^\\+[1-9]\\d{6,14}$"},
            },
            "required": ["plate", "phone"],
            "additionalProperties": False,
        },
        {"plate": "KA-PA 777", "phone": "+4972112345678"},
        {"plate": "1", "phone": "+49"},
    ),
    (
        "formats",
        {
            "type": "object",
            "properties": {
                "when": {"type": "string", "format": "date-time"},
                "id": {"type": "string", "format": "uuid"},
                "mail": {"type": "string", "format": "email"},
                "host": {"type": "string", "format": "ipv4"},
            },
            "required": ["when", "id", "mail", "host"],
            "additionalProperties": False,
        },
        {
            "when": "2026-02-03T04:05:06Z",
            "id": "123e4567-e89b-12d3-a456-426614174000",
            "mail": "ada@example.org",
            "host": "192.168.10.1",
        },
        {"when": "yesterday", "id": "x", "mail": "y", "host": "z"},
    ),
    (
        "limits",
        {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "minimum": -1000, "exclusiveMaximum": 5},
                "x": {"type": "number", "minimum": 0.5, "maximum": 99.25},
                "k": {"type": "integer", "multipleOf": 7},
                "s": {"type": "string", "minLength": 3, "maxLength": 2000},
                "a": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 50},
            },
            "required": ["n", "x", "k", "s", "a"],
            "additionalProperties": False,
        },
        {"n": -77, "x": 12.5, "k": 49, "s": "some words " * 20, "a": [True, False] * 6},
        {"n": 5, "x": 0.1, "k": 8, "s": "a", "a": [True]},
    ),
    (
        "map",
        {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "number"}}},
        {f"key {i}": [i, i / 4] for i in range(20)},
        {"key": "text"},
    ),
    ("large enum", {"type": "array", "items": {"enum": WORDS}}, WORDS[10:4000:400], ["entry-0"]),
    (
        "wide",
        {
            "type": "object",
            "properties": {f"field_{i}": {"type": ["string", "null"]} for i in range(500)},
            "additionalProperties": False,
        },
        {f"field_{i}": None if i % 3 else f"text {i}" for i in range(0, 500, 9)},
        {"field_500": None},
    ),
    (
        "allOf",
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]},
            ]
        },
        {"a": 1, "b": "two"},
        {"a": 1},
    ),
    (
        "oneOf",
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": kind}, "value": {"type": type_}},
                    "required": ["kind", "value"],
                    "additionalProperties": False,
                }
                for kind, type_ in (("a", "integer"), ("b", "string"), ("c", "boolean"))
            ]
        },
        {"kind": "b", "value": "x"},
        {"kind": "b", "value": 1},
    ),
    ("uniqueItems", {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [1], [1, 1]),
    ("free JSON", {"type": "object"}, {"a": [1, {"b": None}], "c": "d" * 200}, [1]),
    ("const", {"const": {"a": [1, "x"]}}, {"a": [1, "x"]}, {"a": [1, "y"]}),
    ("nullable", {"type": ["string", "null"]}, None, 1),
    ("lengths", {"type": "string", "minLength": 2, "maxLength": 4}, "abc", "abcde"),
    ("bounds", {"type": "integer", "exclusiveMinimum": 3, "maximum": 9}, 4, 3),
    ("multipleOf", {"type": "integer", "multipleOf": 7}, 21, 22),
    (
        "prefixItems",
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "integer"}],
            "items": False,
            "minItems": 2,
        },
        ["a", 1],
        ["a", "b"],
    ),
    (
        "additionalProperties",
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"x": True},
        {"x": 1},
    ),
    (
        "patternProperties",
        {
            "type": "object",
            "patternProperties": {"^n_": {"type": "integer"}},
            "additionalProperties": False,
        },
        {"n_a": 1},
        {"m_a": 1},
    ),
    (
        "minProperties",
        {"type": "object", "minProperties": 1, "additionalProperties": {"type": "integer"}},
        {"a": 1},
        {},
    ),
    (
        "propertyNames",
        {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z]+$"},
            "additionalProperties": {"type": "integer"},
        },
        {"ab": 1},
        {"AB": 1},
    ),
    ("not", {"type": ["string", "integer"], "not": {"type": "integer"}}, "x", 1),
    (
        "if then else",
        {
            "type": "object",
            "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": ["integer", "string"]}},
            "required": ["kind", "n"],
            "additionalProperties": False,
            "if": {"properties": {"kind": {"const": "a"}}},
            "then": {"properties": {"n": {"type": "integer"}}},
            "else": {"properties": {"n": {"type": "string"}}},
        },
        {"kind": "a", "n": 1},
        {"kind": "a", "n": "x"},
    ),
    (
        "dependentRequired",
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "additionalProperties": False,
            "dependentRequired": {"a": ["b"]},
        },
        {"a": 1, "b": 2},
        {"a": 1},
    ),
    (
        "dependentSchemas",
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "additionalProperties": False,
            "dependentSchemas": {"a": {"required": ["b"]}},
        },
        {"a": 1, "b": 2},
        {"a": 1},
    ),
    (
        "contains",
        {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "maxItems": 3},
        [2, 1],
        [2, 2],
    ),
    (
        "unevaluatedProperties",
        {
            "type": "object",
            "allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}],
            "unevaluatedProperties": False,
        },
        {"a": 1},
        {"a": 1, "b": 2},
    ),
    ("anchors", {"$defs": {"p": {"$anchor": "p", "type": "integer"}}, "$ref": "#p"}, 3, "x"),
    (
        "dynamicRef",
        {
            "$dynamicAnchor": "node",
            "type": "object",
            "properties": {"next": {"$dynamicRef": "#node"}},
            "additionalProperties": False,
        },
        {"next": {}},
        {"next": 1},
    ),
]


class Matcher(Protocol):
    def fill(self, mask: np.ndarray[Any, Any]) -> None: ...
    def accept(self, token_id: int) -> bool: ...
    def completes(self, mask: np.ndarray[Any, Any]) -> bool: ...


class Engine(Protocol):
    def compile(self, schema: Any) -> Callable[[], Matcher]:
        """Raises ValueError for a schema it cannot enforce."""
        ...


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Ours:
    """llguidance as we serve it: our vocabulary, limits and matcher, and our form of schemas."""

    def __init__(self, path: str, rows: int, eos: list[int]) -> None:
        from engine.grammar import GrammarCompiler, GrammarError, GrammarSpec, Vocabulary
        from server.constraints.schema import WHITESPACE, normalized
        from server.errors import BadRequest

        vocabulary = Vocabulary.from_backend(
            Tokenizer.from_file(path), num_rows=rows, eos_ids=tuple(eos)
        )
        self._compiler = GrammarCompiler(vocabulary)
        self._spec = GrammarSpec
        self._normalized = normalized
        self._whitespace = WHITESPACE
        self._errors = (GrammarError, BadRequest)
        self._eos_id = eos[0]

    def compile(self, schema: Any) -> Callable[[], Matcher]:
        try:
            body = {"x-guidance": self._whitespace, **self._normalized(schema, path="schema")}
            spec = self._spec(grammar=f"start: %json {json.dumps(body)}", bounds_numbers=True)
            self._compiler.matcher(spec)
        except self._errors as error:
            raise ValueError(getattr(error, "message", str(error))) from None
        return lambda: OurMatcher(self._compiler.matcher(spec), self._eos_id)


class OurMatcher:
    def __init__(self, matcher: Any, eos_id: int) -> None:
        self.fill = matcher.fill
        self.accept = matcher.accept
        self._eos_id = eos_id

    def completes(self, mask: np.ndarray[Any, Any]) -> bool:
        self.fill(mask)
        return bool(mask[self._eos_id // 32] >> (self._eos_id % 32) & 1)


class XgrammarMatcher:
    def __init__(self, matcher: Any, rows: int) -> None:
        import torch
        import xgrammar

        self._matcher = matcher
        self._bits = xgrammar.allocate_token_bitmask(1, rows)
        self._view = self._bits.numpy()
        assert self._bits.dtype == torch.int32

    def fill(self, mask: np.ndarray[Any, Any]) -> None:
        if not self._matcher.fill_next_token_bitmask(self._bits):
            self._bits.fill_(-1)
        mask[:] = self._view[0]

    def accept(self, token_id: int) -> bool:
        return self._matcher.accept_token(token_id)

    def completes(self, mask: np.ndarray[Any, Any]) -> bool:
        return self._matcher.is_completed()


class Xgrammar:
    def __init__(self, path: str, rows: int, eos: list[int]) -> None:
        import xgrammar

        vocab = Tokenizer.from_file(path).get_vocab(with_added_tokens=True)
        pieces = [""] * rows
        for piece, token_id in vocab.items():
            pieces[token_id] = piece
        info = xgrammar.TokenizerInfo(
            pieces,
            vocab_type=xgrammar.VocabType.BYTE_LEVEL,
            vocab_size=rows,
            stop_token_ids=eos,
            add_prefix_space=False,
        )
        self._rows = rows
        self._new = xgrammar.GrammarMatcher
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema: Any) -> Callable[[], Matcher]:
        try:
            compiled = self._compiler.compile_json_schema(
                json.dumps(schema), strict_mode=False, max_whitespace_cnt=32
            )
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        return lambda: XgrammarMatcher(self._new(compiled), self._rows)


def fits(matcher: Matcher, ids: list[int], mask: np.ndarray[Any, Any]) -> bool:
    """Whether each id is allowed where it stands, and the document may end after the last."""
    for token_id in ids:
        matcher.fill(mask)
        if not mask[token_id // 32] >> (token_id % 32) & 1 or not matcher.accept(token_id):
            return False
    return matcher.completes(mask)


def walk(
    matcher: Matcher, ids: list[int], mask: np.ndarray[Any, Any]
) -> tuple[list[float], list[float]]:
    """Milliseconds of this thread per mask and per accepted token."""
    fills: list[float] = []
    accepts: list[float] = []
    for token_id in ids:
        began = time.thread_time()
        matcher.fill(mask)
        filled = time.thread_time()
        if not matcher.accept(token_id):
            break
        accepts.append((time.thread_time() - filled) * 1e3)
        fills.append((filled - began) * 1e3)
    return fills, accepts


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, default=None, help="rows of the embedding")
    parser.add_argument("--engine", choices=("ours", "xgrammar"), default="ours")
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    rows = arguments.rows or tokenizer.get_vocab_size(with_added_tokens=True)
    eos = [i for name in END_TOKENS if (i := tokenizer.token_to_id(name)) is not None]
    mask = np.zeros((rows + 31) // 32, dtype=np.int32)

    __import__({"ours": "engine.grammar", "xgrammar": "xgrammar"}[arguments.engine])
    memory, began = resident_mib(), time.perf_counter()
    make = {"ours": Ours, "xgrammar": Xgrammar}[arguments.engine]
    engine: Engine = make(str(arguments.tokenizer), rows, eos)
    print(
        f"{arguments.engine}: {rows} rows, set-up {time.perf_counter() - began:.2f} s, "
        f"{resident_mib() - memory:.0f} MiB"
    )
    print(
        "schema                  compile ms   first mask ms   "
        "mask ms median / p99 / max   accept ms"
    )
    every: list[float] = []
    num_refused = num_wrong = 0
    for name, schema, good, bad in CASES:
        began = time.thread_time()
        try:
            new = engine.compile(schema)
        except ValueError as error:
            print(f"{name:22s}  refused: {str(error).splitlines()[0][:90]}")
            num_refused += 1
            continue
        compiled = time.thread_time()
        new().fill(mask)
        first = time.thread_time()
        texts = [json.dumps(good), json.dumps(good, separators=(",", ":"))]
        texts.append(json.dumps(good, indent=2))
        fills: list[float] = []
        accepts: list[float] = []
        wrong: list[str] = []
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            fill_ms, accept_ms = walk(new(), ids, mask)
            fills += fill_ms
            accepts += accept_ms
            if not fits(new(), ids, mask):
                wrong.append("refuses " + text[:40])
        if fits(new(), tokenizer.encode(json.dumps(bad), add_special_tokens=False).ids, mask):
            wrong.append("takes " + json.dumps(bad)[:40])
        every += fills
        num_wrong += bool(wrong)
        print(
            f"{name:22s}  {(compiled - began) * 1e3:10.1f}   {(first - compiled) * 1e3:13.2f}   "
            f"{statistics.median(fills):8.3f} / {percentile(fills, 0.99):6.3f} / {max(fills):6.3f}"
            f"     {statistics.median(accepts):9.3f}   {'; '.join(wrong)}"
        )
    print(
        f"all masks: median {statistics.median(every):.3f}, p99 {percentile(every, 0.99):.3f},"
        f" max {max(every):.3f} ms"
    )
    print(
        f"coverage: {len(CASES) - num_refused - num_wrong} of {len(CASES)} schemas are enforced, "
        f"{num_refused} refused, {num_wrong} wrong"
    )


if __name__ == "__main__":
    main()
