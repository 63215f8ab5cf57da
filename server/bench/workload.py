"""What is asked, and when: deterministic in the seed.

Prompts for the completions endpoint are token ids, so their lengths are exact on any server. They
are drawn from a range that every vocabulary of the family has and that holds plain text. The chat
endpoint takes text: random words, as many as the tokens wanted divided by the tokens per word that
the server was measured to have.
"""

import random
from dataclasses import dataclass

from server.arguments import BenchArguments

TOKEN_IDS = range(300, 1000)
TEXT = """\
about again air all always and animal answer around back because before big book boy change city
close country day different door down each earth end every family far father few find food four
friend give good great group hand hard head help here high home house idea keep kind land large
last late learn leave left letter life light line list little live long look made make man mean
might miss money more morning most mother mountain move much music name near need never next night
number often old open other over own page paper part people place plant play point question quick
read real right river road room run same say school sea second see seem sentence set show side
small song soon sound spell start state still stop story study sun table take talk tell ten thing
think three time together took tree try turn under until up use very walk want watch water way week
well white why with word work world write year young"""
WORDS = TEXT.split()


@dataclass(frozen=True, slots=True)
class Job:
    """One request to send. `prompt` is token ids for completions, text for chat."""

    due_s: float  # since the start; 0: as soon as there is room
    prompt: list[int] | str
    output_tokens: int


def make_jobs(arguments: BenchArguments, tokens_per_word: float) -> list[Job]:
    rng = random.Random(arguments.seed)
    shared = _words(rng, arguments.shared_prefix_tokens)
    due_s = 0.0
    jobs: list[Job] = []
    for _ in range(arguments.num_requests):
        num_tokens = rng.randint(*arguments.prompt_tokens)
        own = _words(rng, num_tokens - len(shared))
        jobs.append(
            Job(
                due_s=due_s,
                prompt=_prompt(arguments.endpoint, shared, own, tokens_per_word),
                output_tokens=rng.randint(*arguments.output_tokens),
            )
        )
        if arguments.request_rate is not None:
            due_s += rng.expovariate(arguments.request_rate)
    return jobs


def probe_text(num_words: int) -> str:
    """Words to measure tokens per word with."""
    return _text(_words(random.Random(0), num_words))


def _words(rng: random.Random, count: int) -> list[float]:
    """Positions in [0, 1): a word or token each, whichever the endpoint takes."""
    return [rng.random() for _ in range(count)]


def _prompt(
    endpoint: str, shared: list[float], own: list[float], tokens_per_word: float
) -> list[int] | str:
    if endpoint == "completions":
        return [TOKEN_IDS[int(x * len(TOKEN_IDS))] for x in shared + own]
    kept = [part[: round(len(part) / tokens_per_word)] for part in (shared, own)]
    return _text(kept[0] + kept[1]) or WORDS[0]


def _text(positions: list[float]) -> str:
    return " ".join(WORDS[int(x * len(WORDS))] for x in positions)
