"""A model that writes nonsense: a small byte-level vocabulary and random walks through grammars."""

import random
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from engine.grammar import GrammarCompiler, GrammarSpec, Matcher, Vocabulary

NUM_PADDING = 37  # rows of the embedding past the tokenizer

# In id order; True: special.
ADDED = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<think>", False),
    ("</think>", False),
)
TEXTS = (
    '{"name": "Ada", "age": 36, "tags": ["one", "two"], "nested": {"value": -1.5e3, "ok": true}}',
    '[null, false, 12, 100, 2026-02-03T04:05:06Z, {"a":1,"b":[]}], "x": "y", "id": "\\u0001\\n"',
    "<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n",
    "The weather is fine, über 30 °C. 10:30 99.9 0.001 e10 E+2 日本語 😀\n\n    indented\n",
) * 3

# What ends whatever is open, in the order of trying: see `_closing`.
_IN_TEXT = ("\n</parameter>\n", '"')  # where a letter may stand
_BETWEEN = ("</tool_call>", "]", "}", "0", '"', ":", ",")


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(name, special=special) for name, special in ADDED])
    return tokenizer


class NoEnd(AssertionError):
    pass


class Babbler:
    """Samples answers uniformly from what a grammar allows."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.eos_ids = tuple(self.id_of(name) for name in ("<|im_end|>", "<|endoftext|>"))
        self.num_tokens = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self.vocabulary = Vocabulary.from_backend(
            self.tokenizer, num_rows=self.num_tokens + NUM_PADDING, eos_ids=self.eos_ids
        )
        self.compiler = GrammarCompiler(self.vocabulary)

    def id_of(self, name: str) -> int:
        token_id = self.tokenizer.token_to_id(name)
        assert token_id is not None
        return token_id

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def allowed(self, matcher: Matcher) -> list[int]:
        mask = np.zeros(self.vocabulary.num_words, dtype=np.int32)
        matcher.fill(mask)
        return allowed_ids(mask)

    def accepts(self, spec: GrammarSpec, text: str) -> bool:
        """Whether the text is a whole answer, in the longest tokens that are allowed."""
        matcher = self.compiler.matcher(spec)
        rest = text.encode()
        while rest:
            by_text = {self.vocabulary.token_bytes[i]: i for i in self.allowed(matcher)}
            found = max((t for t in by_text if t and rest.startswith(t)), key=len, default=None)
            if found is None:
                return False
            assert matcher.accept(by_text[found])
            rest = rest[len(found) :]
        return self.eos_ids[0] in self.allowed(matcher)

    def answer(
        self,
        spec: GrammarSpec,
        rng: random.Random,
        *,
        free_tokens: int,
        max_tokens: int = 5000,
        chars: str = "",
        begin: str = "",
    ) -> str:
        """A random answer that begins with `begin`.

        After `free_tokens` it writes `chars`, or tends to end what is open.
        """
        matcher = self.compiler.matcher(spec)
        errors = "strict" if spec.after_token_id is None else "replace"  # what is free is any bytes
        text = bytearray(begin.encode())
        for token_id in self.encode(begin):
            assert matcher.accept(token_id)
        for index in range(max_tokens):
            allowed = self.allowed(matcher)
            assert max(allowed) < self.num_tokens, "padding is never allowed"
            ends = [i for i in allowed if i in self.eos_ids]
            if ends and (len(ends) == len(allowed) or index >= free_tokens):
                assert matcher.accept(ends[0])
                assert set(self.allowed(matcher)) == set(self.eos_ids)
                return text.decode("utf-8", errors)
            token_id = rng.choice(allowed)
            if index == free_tokens and spec.after_token_id in allowed:
                token_id = spec.after_token_id
            elif index >= free_tokens and chars:
                token_id = self._one_of(chars, allowed, rng) or token_id
            elif index >= free_tokens and rng.random() < 0.9:
                token_id = self._closing(allowed, bytes(text), token_id)
            if token_id in self.eos_ids:
                return text.decode("utf-8", errors)
            assert matcher.accept(token_id)
            text += self.vocabulary.token_bytes[token_id]
        raise NoEnd(f"no end within {max_tokens} tokens: ...{bytes(text[-200:])!r}")

    def stubborn(self, spec: GrammarSpec, pick: Callable[[list[int]], int]) -> str:
        """The answer of a model that goes on as long as it can."""
        matcher = self.compiler.matcher(spec)
        text = bytearray()
        for _ in range(5000):
            going_on = [i for i in self.allowed(matcher) if i not in self.eos_ids]
            if not going_on:
                return text.decode("utf-8")
            token_id = pick(going_on)
            assert matcher.accept(token_id)
            text += self.vocabulary.token_bytes[token_id]
        raise NoEnd(f"no end: ...{bytes(text[-200:])!r}")

    def _one_of(self, chars: str, allowed: list[int], rng: random.Random) -> int | None:
        wanted = set(map(str.encode, chars))
        found = [i for i in allowed if self.vocabulary.token_bytes[i] in wanted]
        return rng.choice(found) if found else None

    def _closing(self, allowed: list[int], text: bytes, fallback: int) -> int:
        """The byte that goes on with a closer, or begins one; else anything."""
        by_text = {self.vocabulary.token_bytes[i]: i for i in allowed}
        for closer in map(str.encode, _IN_TEXT if b"z" in by_text else _BETWEEN):
            done = max(n for n in range(len(closer)) if text.endswith(closer[:n]))
            for following in (closer[done : done + 1], closer[:1]):
                if following in by_text:
                    return by_text[following]
        return fallback


def allowed_ids(mask: npt.NDArray[np.int32]) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
