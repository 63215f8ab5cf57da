"""Grammar engines on a real vocabulary: set-up, compiling, masks per token, coverage.

python -m tests.benchmarks.grammar tokenizer.json [--rows N] [--engine llguidance|xgrammar]
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

# name, schema, a document that fits, a document that does not
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
]


class Matcher(Protocol):
    def fill(self, mask: np.ndarray[Any, Any]) -> None: ...
    def accept(self, token_id: int) -> bool: ...
    def completes(self) -> bool: ...


class Engine(Protocol):
    def compile(self, schema: Any) -> Callable[[], Matcher]:
        """Raises ValueError for a schema it cannot enforce."""
        ...


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class LlguidanceMatcher:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fill(self, mask: np.ndarray[Any, Any]) -> None:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)

    def accept(self, token_id: int) -> bool:
        return self._matcher.consume_token(token_id)

    def completes(self) -> bool:
        return self._matcher.is_accepting()


class Llguidance:
    def __init__(self, path: str, rows: int, eos: list[int]) -> None:
        import llguidance

        self._matcher = llguidance.LLMatcher
        self._tokenizer = llguidance.LLTokenizer(path, n_vocab=rows, eos_token=eos)

    def compile(self, schema: Any) -> Callable[[], Matcher]:
        grammar = self._matcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_pattern": r" |\n[ \t]{0,32}"}
        )
        first = self._matcher(self._tokenizer, grammar, log_level=0)
        if first.is_error():
            raise ValueError(first.get_error())
        return lambda: LlguidanceMatcher(first.deep_copy())


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

    def completes(self) -> bool:
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
    return matcher.completes()


def walk(
    matcher: Matcher, ids: list[int], mask: np.ndarray[Any, Any]
) -> tuple[list[float], list[float]]:
    """Milliseconds per mask and per accepted token."""
    fills: list[float] = []
    accepts: list[float] = []
    for token_id in ids:
        began = time.perf_counter()
        matcher.fill(mask)
        filled = time.perf_counter()
        matcher.accept(token_id)
        accepts.append((time.perf_counter() - filled) * 1e3)
        fills.append((filled - began) * 1e3)
    return fills, accepts


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, default=None, help="rows of the embedding")
    parser.add_argument("--engine", choices=("llguidance", "xgrammar"), default="llguidance")
    arguments = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
    rows = arguments.rows or tokenizer.get_vocab_size(with_added_tokens=True)
    eos = [i for name in END_TOKENS if (i := tokenizer.token_to_id(name)) is not None]
    mask = np.zeros((rows + 31) // 32, dtype=np.int32)

    make = {"llguidance": Llguidance, "xgrammar": Xgrammar}[arguments.engine]
    make_args = (str(arguments.tokenizer), rows, eos)
    __import__(arguments.engine)
    memory, began = resident_mib(), time.perf_counter()
    engine: Engine = make(*make_args)
    print(
        f"{arguments.engine}: {rows} rows, set-up {time.perf_counter() - began:.2f} s, "
        f"{resident_mib() - memory:.0f} MiB"
    )
    print("schema        compile ms   first mask ms   mask ms median / p99 / max   accept ms")
    every: list[float] = []
    for name, schema, good, bad in CASES:
        began = time.perf_counter()
        try:
            new = engine.compile(schema)
        except ValueError as error:
            print(f"{name:12s}  refused: {str(error).splitlines()[0][:90]}")
            continue
        compiled = time.perf_counter()
        new().fill(mask)
        first = time.perf_counter()
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
        print(
            f"{name:12s}  {(compiled - began) * 1e3:10.1f}   {(first - compiled) * 1e3:13.2f}   "
            f"{statistics.median(fills):8.3f} / {percentile(fills, 0.99):6.3f} / {max(fills):6.3f}"
            f"     {statistics.median(accepts):9.3f}   {'; '.join(wrong)}"
        )
    print(
        f"all masks: median {statistics.median(every):.3f} ms, p99 {percentile(every, 0.99):.3f} ms,"
        f" max {max(every):.3f} ms; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}"
        " MiB"
    )


if __name__ == "__main__":
    main()
