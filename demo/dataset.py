"""Samples as the model sees them: rendered by the chat template, tokenised, sorted into batches.

Data comes in shards of `SHARD_SAMPLES` samples; (seed, shard) decides everything in it, so that an
interrupted training goes on with what it would have seen. A batch holds samples of similar length,
padded to a multiple of 64, and batches next to one another are alike in size: no rank waits long
for another.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo.choosing import NO_CHOICE, NO_DOMAIN
from demo.mixture import stage, training_samples
from demo.sample import Sample
from server.demo_model import DIRECTORY
from server.template import ChatTemplate

SHARD_SAMPLES = 4096
MULTIPLE = 64
TEMPLATE_FILE = DIRECTORY / "chat_template.jinja"
START_OF_ANSWER = "<|im_start|>assistant\n"
END_OF_TURN = "<|im_end|>"
_NAME = re.compile(r"<(?P<what>function|parameter)(?P<name>=[^>]+)>")


@dataclass(frozen=True, slots=True)
class Batch:
    token_BT: np.ndarray  # int64, padded with the end-of-text token
    answer_BT: np.ndarray  # bool: the token is one that the model itself would have to say
    text_BT: np.ndarray  # bool: not padding
    named_BT: np.ndarray  # int64: see `demo.choosing.Choices`
    kind_BT: np.ndarray  # int64: likewise

    @property
    def num_tokens(self) -> int:
        return int(self.text_BT.sum())


@dataclass(slots=True)
class Tokens:
    """One sample; the columns are those of `Batch`."""

    token_T: np.ndarray
    answer_T: np.ndarray
    named_T: np.ndarray
    kind_T: np.ndarray

    def __len__(self) -> int:
        return len(self.token_T)


class Renderer:
    def __init__(self) -> None:
        self._template = ChatTemplate(TEMPLATE_FILE.read_text("utf-8"))

    def segments(self, sample: Sample) -> list[tuple[str, bool]]:
        """The conversation in pieces; the flag says which ones are the model's to say."""
        last_question = max(
            i for i, message in enumerate(sample.messages) if message["role"] == "user"
        )
        whole = self._template.render(
            sample.messages,
            sample.tools or None,
            add_generation_prompt=False,
            kwargs={},
            max_chars=1_000_000,
        )
        pieces: list[tuple[str, bool]] = []
        done = 0
        for i, message in enumerate(sample.messages):
            if message["role"] != "assistant":
                continue
            start = whole.index(START_OF_ANSWER, done) + len(START_OF_ANSWER)
            if i > last_question:  # earlier turns are shown without what was thought
                prompt = self._render(sample, i)
                assert whole.startswith(prompt), "what was asked for is not what was rendered"
                start = len(prompt)
            end = whole.index(END_OF_TURN, start) + len(END_OF_TURN)
            pieces += [(whole[done:start], False), (whole[start:end], True)]
            done = end
        return pieces

    def _render(self, sample: Sample, num_messages: int) -> str:
        return self._template.render(
            sample.messages[:num_messages],
            sample.tools or None,
            add_generation_prompt=True,
            kwargs={} if sample.thinking else {"enable_thinking": False},
            max_chars=1_000_000,
        )


def encode(samples: list[Sample], renderer: Renderer, tokenizer: Tokenizer) -> list[Tokens]:
    pieces = [renderer.segments(sample) for sample in samples]
    flat = [text for sample in pieces for text, _ in sample]
    encoded = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
    result: list[Tokens] = []
    for sample, parts in zip(samples, pieces, strict=True):
        encodings = [next(encoded) for _ in parts]
        tokens = _blank((sum(len(encoding) for encoding in encodings),))
        names = _Names(sample, tokenizer)
        start = 0
        for (text, is_answer), encoding in zip(parts, encodings, strict=True):
            end = start + len(encoding)
            tokens.token_T[start:end], tokens.answer_T[start:end] = encoding.ids, is_answer
            for match in _NAME.finditer(text):
                first = start + encoding.char_to_token(match.start("name"))
                last = start + encoding.char_to_token(match.end("name") - 1)
                numbers, kinds = names.of(match["what"], match["name"][1:], last - first + 1)
                tokens.named_T[first : last + 1] = numbers
                tokens.kind_T[first : last + 1] = kinds
            start = end
        result.append(tokens)
    return result


class _Names:
    """The tokens of tools' and parameters' names in one sample, numbered; see `Choices`."""

    def __init__(self, sample: Sample, tokenizer: Tokenizer) -> None:
        given = {tool["function"]["name"]: NO_DOMAIN for tool in sample.tools}
        self._kinds = given | sample.kinds
        self._ids = {
            name: tokenizer.encode(f"={name}", add_special_tokens=False).ids for name in self._kinds
        }
        self._numbers: dict[tuple[str, str, int], int] = {}
        self._tool = ""

    def of(self, what: str, name: str, length: int) -> tuple[list[int], list[int]]:
        """(numbers, kinds) of the tokens of a name at the place that the reading has come to."""
        if what == "function":
            self._tool = name if name in self._kinds else ""
        if not self._tool:
            return [0] * length, [NO_CHOICE] * length
        numbers = [
            self._numbers.setdefault((self._tool, what + name, depth), len(self._numbers) + 1)
            for depth in range(length)
        ]
        depth = self._depth(name) if what == "function" else 0
        kinds = [self._kinds[self._tool]] * depth + [NO_CHOICE] * length
        return numbers, kinds[:length]

    def _depth(self, name: str) -> int:
        """How many tokens of a name are written before it can be no other one."""
        own, depth = self._ids[name], 1
        for other, ids in self._ids.items():
            if other != name:
                same = [a == b for a, b in zip(own, ids, strict=False)]
                depth = max(depth, same.index(False) + 1 if False in same else len(same))
        return depth


def _blank(shape: tuple[int, ...]) -> Tokens:
    token, named = (np.zeros(shape, dtype=np.int64) for _ in range(2))
    return Tokens(token, np.zeros(shape, dtype=bool), named, np.full(shape, NO_CHOICE))


def shard_batches(
    tokenizer_file: Path, seed: int, shard: int, batch_tokens: int, max_tokens: int
) -> list[Batch]:
    """The batches of one shard in their order, each of about `batch_tokens` with padding."""
    tokenizer, renderer = Tokenizer.from_file(str(tokenizer_file)), Renderer()
    source = training_samples(seed * 1_000_003 + shard, stage(shard))
    samples = [next(source) for _ in range(SHARD_SAMPLES)]
    encoded = [item for item in encode(samples, renderer, tokenizer) if len(item) <= max_tokens]
    encoded.sort(key=len)
    batches: list[Batch] = []
    group: list[Tokens] = []
    for item in encoded:
        # The one that makes it full may go over by half of itself: long ones would leave much bare.
        if group and _width(item) * (len(group) + 0.5) > batch_tokens:
            batches.append(_padded(group, tokenizer))
            group = []
        group.append(item)
    batches.append(_padded(group, tokenizer))
    if len(batches) % 2:
        batches.pop(0)  # of the shortest
    pairs = [batches[i : i + 2] for i in range(0, len(batches), 2)]
    random.Random(f"{seed} {shard}").shuffle(pairs)
    return [batch for pair in pairs for batch in pair]


def _width(item: Tokens) -> int:
    return -(-len(item) // MULTIPLE) * MULTIPLE


def _padded(group: list[Tokens], tokenizer: Tokenizer) -> Batch:
    shape = (len(group), max(map(_width, group)))
    blank = _blank(shape)
    blank.token_T[:] = tokenizer.token_to_id("<|endoftext|>")
    text_BT = np.zeros(shape, dtype=bool)
    for row, item in enumerate(group):
        for column in ("token_T", "answer_T", "named_T", "kind_T"):
            getattr(blank, column)[row, : len(item)] = getattr(item, column)
        text_BT[row, : len(item)] = True
    return Batch(blank.token_T, blank.answer_T, text_BT, blank.named_T, blank.kind_T)


def training_texts(seed: int, count: int) -> Iterator[str]:
    """Whole conversations, for the tokenizer to be trained on."""
    renderer, source = Renderer(), training_samples(seed)
    for _ in range(count):
        yield "".join(text for text, _ in renderer.segments(next(source)))
