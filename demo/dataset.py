"""Samples as the model sees them: rendered by the chat template, tokenised, sorted into batches.

Data comes in shards of `SHARD_SAMPLES` samples; (seed, shard) decides everything in it, so that an
interrupted training goes on with what it would have seen. A batch holds samples of similar length,
padded to a multiple of 64.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo.mixture import stage, training_samples
from demo.sample import Sample
from server.demo_model import DIRECTORY
from server.template import ChatTemplate

SHARD_SAMPLES = 4096
MULTIPLE = 64
TEMPLATE_FILE = DIRECTORY / "chat_template.jinja"
START_OF_ANSWER = "<|im_start|>assistant\n"
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Batch:
    token_BT: np.ndarray  # int64, padded with the end-of-text token
    answer_BT: np.ndarray  # bool: the token is one that the model itself would have to say
    text_BT: np.ndarray  # bool: not padding

    @property
    def num_tokens(self) -> int:
        return int(self.text_BT.sum())


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


def encode(
    samples: list[Sample], renderer: Renderer, tokenizer: Tokenizer
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, which of them are the model's) of each sample."""
    pieces = [renderer.segments(sample) for sample in samples]
    flat = [text for sample in pieces for text, _ in sample]
    encoded = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
    result: list[tuple[np.ndarray, np.ndarray]] = []
    for sample in pieces:
        ids, flags = [], []
        for _, is_answer in sample:
            piece = next(encoded).ids
            ids += piece
            flags += [is_answer] * len(piece)
        result.append((np.array(ids, dtype=np.int64), np.array(flags)))
    return result


def shard_batches(
    tokenizer_file: Path, seed: int, shard: int, batch_tokens: int, max_tokens: int
) -> list[Batch]:
    """The batches of one shard in their order, each of about `batch_tokens` with padding."""
    tokenizer, renderer = Tokenizer.from_file(str(tokenizer_file)), Renderer()
    source = training_samples(seed * 1_000_003 + shard, stage(shard))
    samples = [next(source) for _ in range(SHARD_SAMPLES)]
    encoded = [pair for pair in encode(samples, renderer, tokenizer) if len(pair[0]) <= max_tokens]
    encoded.sort(key=lambda pair: len(pair[0]))
    batches: list[Batch] = []
    group: list[tuple[np.ndarray, np.ndarray]] = []
    for pair in encoded:
        width = -(-len(pair[0]) // MULTIPLE) * MULTIPLE
        if group and width * (len(group) + 1) > batch_tokens:
            batches.append(_padded(group, tokenizer))
            group = []
        group.append(pair)
    batches.append(_padded(group, tokenizer))
    random.Random(f"{seed} {shard}").shuffle(batches)
    return batches


def _padded(group: list[tuple[np.ndarray, np.ndarray]], tokenizer: Tokenizer) -> Batch:
    width = -(-max(len(ids) for ids, _ in group) // MULTIPLE) * MULTIPLE
    shape = (len(group), width)
    token_BT = np.full(shape, tokenizer.token_to_id("<|endoftext|>"), dtype=np.int64)
    answer_BT, text_BT = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for row, (ids, flags) in enumerate(group):
        token_BT[row, : len(ids)], answer_BT[row, : len(ids)] = ids, flags
        text_BT[row, : len(ids)] = True
    return Batch(token_BT, answer_BT, text_BT)


def training_texts(seed: int, count: int) -> Iterator[str]:
    """Whole conversations, for the tokenizer to be trained on."""
    renderer, source = Renderer(), training_samples(seed)
    for _ in range(count):
        yield "".join(text for text, _ in renderer.segments(next(source)))
