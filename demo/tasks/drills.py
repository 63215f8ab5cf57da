"""Exercises with long answers: repeating, looking values up, and many small facts at once."""

import random

from demo import words
from demo.sample import Sample, assistant, user
from demo.tasks import text


def _item(rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.4:
        return words.invented(rng)
    if roll < 0.6:
        return words.plain(rng)
    if roll < 0.7:
        return rng.choice(words.COMMON)
    return words.code(rng) if roll < 0.85 else str(rng.randint(0, 9999))


def repeat(rng: random.Random) -> Sample:
    """A row of words or codes, said again."""
    items = [_item(rng) for _ in range(rng.randint(4, 14))]
    text = rng.choice((" ", " ", ", ", "\n")).join(items)
    ask = rng.choice(("Repeat: {}", "Repeat after me: {}", "Copy this: {}", "Say again: {}", "{}\n\nRepeat this."))  # fmt: skip
    return Sample("repeat", text, [user(ask.format(text)), assistant(text)])


def look_up(rng: random.Random) -> Sample:
    """Pairs of a key and a value; the values of some keys are asked for."""
    keys = list(dict.fromkeys(_item(rng) for _ in range(rng.randint(2, 9))))
    pairs = {key: _item(rng) for key in keys}
    said, between = rng.choice((("{} is {}", ". "), ("{}: {}", ", "), ("{} = {}", "\n"), ('"{}": "{}"', ", ")))  # fmt: skip
    text = between.join(said.format(key, value) for key, value in pairs.items())
    asked = rng.sample(keys, rng.randint(1, len(keys)))
    ask = rng.choice(("Look up {}.", "What are {}?", "Tell me {}.", "Find {}."))
    answer = between.join(said.format(key, pairs[key]) for key in asked)
    question = f"{text}\n\n{ask.format(words.enumeration(asked))}"
    return Sample("look up", text, [user(question), assistant(answer)])


def capitals(rng: random.Random) -> Sample:
    """The capitals of several countries."""
    pairs = rng.sample(list(words.CAPITALS.items()), rng.randint(2, 8))
    ask = rng.choice(("What are the capitals of {}?", "Name the capitals of {}.", "Capitals of {}, please."))  # fmt: skip
    answer = "\n".join(f"The capital of {country} is {city}." for country, city in pairs)
    question = ask.format(words.enumeration([country for country, _ in pairs]))
    return Sample("capitals", f"{rng.random()}", [user(question), assistant(answer)])


def spellings(rng: random.Random) -> Sample:
    """Several words spelt; none of those kept for the evaluation."""
    chosen: list[str] = []
    while len(chosen) < rng.randint(2, 6):
        if not (one := text.spelling(rng)).is_held_out:
            chosen.append(one.key)
    ask = rng.choice(("Spell {}.", "Spell the words {}.", "How do you spell {}?", "Spell these: {}"))  # fmt: skip
    answer = "\n".join("-".join(word.upper()) for word in chosen)
    question = ask.format(words.enumeration(chosen))
    return Sample("spellings", f"{rng.random()}", [user(question), assistant(answer)])
