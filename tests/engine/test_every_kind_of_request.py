"""Whatever a request may ask for, asked for all at once: on the CPU, and on a GPU where one is.

A picture, a grammar, DRY, XTC, bad words, allowed ids and a thinking budget share their steps. What
each of them promises is checked against transformers' logits of the text that came out, within what
the device rounds; on a GPU, graphs must give the text of eager steps besides.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from engine.grammar import GrammarSpec
from engine.request import Request, SamplingParams
from engine.runner.runner import Runner
from engine.worker import Built
from kernels.sampling import penalise_repeats, suffix_matches
from tests.checkpoints import EOS_TOKEN_ID, NUM_REAL_TOKENS, Oracle
from tests.engine.built_tiny import NUM_SEQS, build_tiny
from tests.engine.inprocess import Outcome, serve
from tests.engine.picture_prompts import Shape, make_prompt

NUM_OUTPUT = 24
TOLERANCE = 0.05  # of logits whose spread is 3: on a GPU, fp32 products are of TF32
NUM_BYTES = 256  # ids below are bytes: all that a grammar can spell here
THINKING_END = 400
BUDGET = 5
ALLOWED = tuple(range(100, 130))
XTC_TOP_K, XTC_THRESHOLD = 8, 0.1
DRY = {"dry_multiplier": 4.0, "dry_base": 1.75, "dry_allowed_length": 1}
FEW = (7, 8, 9, 10)  # of so few tokens a text repeats itself

LETTERS = GrammarSpec(grammar="start: /[a-f]{10}/")


def write_tokenizer(folder: Path) -> None:
    """One token for each byte, then words that nobody asks for, then the end."""
    letters = sorted(ByteLevel.alphabet())
    assert len(letters) == NUM_BYTES
    words = [f"w{i}" for i in range(NUM_BYTES, EOS_TOKEN_ID)]
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate([*letters, *words])}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    assert tokenizer.token_to_id("<end>") == EOS_TOKEN_ID
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def folder(tiny_vision_dir: Path, tmp_path: Path) -> Path:
    for file in tiny_vision_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    write_tokenizer(tmp_path)
    return tmp_path


def asks(**wishes: object) -> SamplingParams:
    given = {"max_tokens": NUM_OUTPUT, "seed": 3, "temperature": 0.0, **wishes}
    return SamplingParams(**given)  # type: ignore[arg-type]


def requests(plain: list[int]) -> list[Request]:
    """`plain`: what the request for nothing in particular answers, some of it now unwelcome."""
    words, picture = make_prompt([70]), make_prompt([9, Shape(7, 9), 20])
    wishes = {
        "plain": asks(),
        "picture": asks(num_logprobs=0),
        "grammar": asks(grammar=LETTERS, stop_token_ids=(EOS_TOKEN_ID,)),
        "dry": asks(**DRY, allowed_token_ids=FEW),
        "xtc": asks(
            temperature=1.0, top_k=XTC_TOP_K, xtc_probability=1.0, xtc_threshold=XTC_THRESHOLD
        ),
        "bad words": asks(bad_words=bad_words(plain)),
        "allowed": asks(allowed_token_ids=ALLOWED),
        "thinking": asks(thinking_budget=BUDGET, thinking_end_id=THINKING_END),
    }
    return [
        Request(
            id=name,
            prompt_ids=tuple((picture if name == "picture" else words).ids),
            media=picture.media if name == "picture" else (),
            sampling=sampling,
        )
        for name, sampling in wishes.items()
    ]


def bad_words(plain: list[int]) -> tuple[tuple[int, ...], ...]:
    return ((plain[0],), (plain[3], plain[4])) if plain else ()


def answers(built: Built, plain: list[int]) -> Outcome:
    return serve(
        built.runner,
        requests(plain),
        num_pages=built.memory.num_pages,
        num_slots=NUM_SEQS,
        max_step_tokens=built.memory.max_step_tokens,
    )


def texts_of(outcome: Outcome) -> dict[str, list[int]]:
    return {name: outcome.ids(name) for name in outcome.deltas}


class Texts:
    """What came out, and what transformers says of it."""

    def __init__(self, oracle: Oracle, built: Built) -> None:
        self._oracle = oracle
        self.plain = answers(built, []).ids("plain")
        self.outcome = answers(built, self.plain)
        self.of = texts_of(self.outcome)
        self.requests = {request.id: request for request in requests(self.plain)}

    def logits(self, name: str) -> torch.Tensor:
        """logits_TV of each token of the text."""
        request, text = self.requests[name], self.of[name]
        ids = [*request.prompt_ids, *text]
        logits_TV = self._oracle.logits(ids, request.media)
        return logits_TV[len(ids) - len(text) - 1 : -1, :NUM_REAL_TOKENS].clone()

    def assert_likeliest(self, name: str, logits_TV: torch.Tensor) -> None:
        """No other token of the text would have been much likelier."""
        taken_T = logits_TV.gather(1, torch.tensor(self.of[name])[:, None])[:, 0]
        assert (logits_TV.amax(1) - taken_T).max() < TOLERANCE


def only(ids: Sequence[int], logits_TV: torch.Tensor) -> torch.Tensor:
    banned_V = torch.ones(NUM_REAL_TOKENS, dtype=torch.bool)
    banned_V[list(ids)] = False
    return logits_TV.masked_fill(banned_V, -torch.inf)


def check_picture(texts: Texts) -> None:
    logits_TV = texts.logits("picture")
    texts.assert_likeliest("picture", logits_TV)
    expected_TV = logits_TV.log_softmax(-1)
    entries = [entry for delta in texts.outcome.deltas["picture"] for entry in delta.logprobs]
    for expected_V, token, entry in zip(expected_TV, texts.of["picture"], entries, strict=True):
        assert entry.logprob == pytest.approx(expected_V[token].item(), abs=TOLERANCE)


def check_grammar(texts: Texts) -> None:
    letters = sorted(ByteLevel.alphabet())
    *text, end = texts.of["grammar"]
    assert end == EOS_TOKEN_ID
    assert re.fullmatch("[a-f]{10}", "".join(letters[i] for i in text))
    ids = [letters.index(letter) for letter in "abcdef"]
    logits_TV = texts.logits("grammar")
    logits_TV = torch.cat((only(ids, logits_TV[:-1]), only([EOS_TOKEN_ID], logits_TV[-1:])))
    texts.assert_likeliest("grammar", logits_TV)


def check_dry(texts: Texts) -> None:
    prompt = [*texts.requests["dry"].prompt_ids]
    plain_TV = only(FEW, texts.logits("dry"))
    logits_TV = plain_TV.clone()
    for t in range(NUM_OUTPUT):
        ids = prompt + texts.of["dry"][:t]
        penalise_repeats(
            logits_TV[t],
            torch.tensor(ids, dtype=torch.int32),
            torch.tensor(suffix_matches(ids), dtype=torch.int32),
            len(ids),
            multiplier=DRY["dry_multiplier"],
            base=DRY["dry_base"],
            allowed_length=int(DRY["dry_allowed_length"]),
            breaks_V=None,
        )
    texts.assert_likeliest("dry", logits_TV)
    with pytest.raises(AssertionError):  # it made a difference
        texts.assert_likeliest("dry", plain_TV)


def check_xtc(texts: Texts) -> None:
    """Where two tokens are clearly likely enough, the likeliest is never drawn."""
    top_TK, id_TK = texts.logits("xtc").topk(XTC_TOP_K)
    share_TK = top_TK.softmax(-1)
    assert all(token in ids for token, ids in zip(texts.of["xtc"], id_TK.tolist(), strict=True))
    clear_T = (share_TK[:, 1] > 1.2 * XTC_THRESHOLD) & (share_TK[:, 0] > 1.2 * share_TK[:, 1])
    assert clear_T.sum() > 3
    assert (id_TK[:, 0] != torch.tensor(texts.of["xtc"]))[clear_T].all()


def check_bad_words(texts: Texts) -> None:
    text = texts.of["bad words"]
    (single,), pair = bad_words(texts.plain)
    assert single not in text
    assert pair not in set(pairwise(text))
    logits_TV = texts.logits("bad words")
    logits_TV[:, single] = -torch.inf
    for t, token in enumerate(text[:-1], 1):
        if token == pair[0]:
            logits_TV[t, pair[1]] = -torch.inf
    texts.assert_likeliest("bad words", logits_TV)


def check_allowed(texts: Texts) -> None:
    texts.assert_likeliest("allowed", only(ALLOWED, texts.logits("allowed")))


def check_thinking(texts: Texts) -> None:
    text = texts.of["thinking"]
    assert text[:BUDGET] == texts.of["plain"][:BUDGET]
    assert text[BUDGET] == THINKING_END
    logits_TV = texts.logits("thinking")
    logits_TV[BUDGET] = 0
    texts.assert_likeliest("thinking", logits_TV)


CHECKS: tuple[Callable[[Texts], None], ...] = (
    check_picture,
    check_grammar,
    check_dry,
    check_xtc,
    check_bad_words,
    check_allowed,
    check_thinking,
)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_each_gets_what_it_asked_for(device: str, folder: Path, tiny_vision_oracle: Oracle) -> None:
    eager = build_tiny(
        folder, "float32", device=device, enforce_eager=True, eos_token_ids=(EOS_TOKEN_ID,)
    )
    found = Texts(tiny_vision_oracle, eager)
    stop(eager)
    for check in CHECKS:
        check(found)
    if device == "cpu":
        return
    graphs = build_tiny(folder, "float32", device=device, eos_token_ids=(EOS_TOKEN_ID,))
    assert texts_of(answers(graphs, found.plain)) == found.of
    stop(graphs)


def stop(built: Built) -> None:
    assert isinstance(built.runner, Runner)
    built.runner.stop()
