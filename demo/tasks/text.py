"""Copying, reversing, sorting, spelling, counting and short lists."""

import random

from demo import words
from demo.sample import Sample, assistant, user

_LISTS = {
    "animals": words.ANIMALS, "fruits": words.FRUITS, "vegetables": words.VEGETABLES,
    "colours": words.COLOURS, "colors": words.COLOURS, "planets": words.PLANETS,
    "days of the week": words.DAYS, "months": words.MONTHS, "professions": words.PROFESSIONS,
    "languages": words.LANGUAGES, "hobbies": words.HOBBIES, "foods": words.FOODS,
    "cities": words.CITIES,
}  # fmt: skip
_NUMBERS = "one two three four five six seven eight nine ten".split()
_ORDERED = {"planets", "days of the week", "months"}


def _sample(
    rng: random.Random, task: str, key: str, question: str, answer: str, reasoning: str
) -> Sample:
    thinking = rng.random() < 0.35
    messages = [user(question), assistant(answer, reasoning=reasoning if thinking else "")]
    return Sample(task, key, messages, thinking=thinking)


def copying(rng: random.Random) -> Sample:
    count = rng.choice((1, 2, 3, 4, 5, 6, 8, 12))
    kind = rng.random()
    if kind < 0.6:
        text = " ".join(words.words(rng, count))
    elif kind < 0.8:
        text = " ".join(words.code(rng) for _ in range(min(count, 4)))
    else:
        text = " ".join(str(rng.randint(0, 9999)) for _ in range(min(count, 6)))
    asks = (
        "Repeat after me: {}", "Copy this: {}", "Say: {}", "Repeat exactly: {}", "Echo {}", "Please repeat: {}",
        "Write this again: {}", "Repeat this text word for word: {}", "Say '{}'.", "Copy the following line.\n{}",
        "Repeat the following:\n\n{}",
    )  # fmt: skip
    question = rng.choice(asks).format(text)
    return _sample(rng, "copy", text, question, text, "I copy the text as it is.")


def reversing(rng: random.Random) -> Sample:
    items = words.words(rng, rng.randint(2, 6))
    text = " ".join(items)
    asks = (
        "Reverse the order of these words: {}", "Write these words backwards, last word first: {}",
        "Reverse this list of words: {}", "Say these words in reverse order: {}",
        "Put the words in reverse order: {}",
    )  # fmt: skip
    answer = " ".join(reversed(items))
    return _sample(
        rng, "reverse", text, rng.choice(asks).format(text), answer, "The last word comes first."
    )


def sorting(rng: random.Random) -> Sample:
    if rng.random() < 0.5:
        numbers = rng.sample(range(100), rng.randint(2, 6))
        text, answer = (", ".join(map(str, n)) for n in (numbers, sorted(numbers)))
        asks = ("Sort these numbers: {}", "Put these numbers in order: {}", "Sort from small to large: {}", "Order these numbers from smallest to largest: {}")  # fmt: skip
        reasoning = f"The smallest is {min(numbers)}, the largest is {max(numbers)}."
    else:
        items = rng.sample(words.ANIMALS + words.FRUITS + words.THINGS, rng.randint(2, 5))
        text, answer = (", ".join(w) for w in (items, sorted(items)))
        asks = ("Sort these words alphabetically: {}", "Put these words in alphabetical order: {}", "Sort alphabetically: {}", "Order these words from A to Z: {}")  # fmt: skip
        reasoning = "First letters: " + ", ".join(f"{w} {w[0]}" for w in items) + "."
    return _sample(rng, "sort", text, rng.choice(asks).format(text), answer, reasoning)


def spelling(rng: random.Random) -> Sample:
    text = rng.choice((words.word, words.person, words.city))(rng)
    text = text if " " not in text else rng.choice(words.ANIMALS)
    asks = ("Spell {}.", "Spell the word {}.", "How do you spell {}?", "Please spell '{}' letter by letter.", "Spell out {}.")  # fmt: skip
    answer = "-".join(text.upper())
    return _sample(
        rng, "spell", text, rng.choice(asks).format(text), answer, f"The letters of {text}."
    )


def counting(rng: random.Random) -> Sample:
    kind = rng.random()
    if kind < 0.4:
        start, length = rng.choice((1, 1, 1, rng.randint(0, 40))), rng.randint(2, 20)
        end = start + length
        asks = ("Count from {} to {}.", "Write the numbers from {} to {}.", "List the numbers {} to {}.", "Please count from {} to {}.")  # fmt: skip
        question, answer = (
            rng.choice(asks).format(start, end),
            ", ".join(map(str, range(start, end + 1))),
        )
        reasoning = f"I start at {start} and stop at {end}."
    elif kind < 0.55:
        start = rng.randint(2, 20)
        question, answer = (
            rng.choice(("Count down from {}.", "Count backwards from {} to 1.")).format(start),
            ", ".join(map(str, range(start, 0, -1))),
        )
        reasoning = f"I start at {start} and stop at 1."
    elif kind < 0.8:
        items = words.words(rng, rng.randint(1, 9))
        text = " ".join(items)
        asks = ("How many words are here: {}", "Count the words: {}", "How many words does this line have? {}")  # fmt: skip
        question = rng.choice(asks).format(text)
        steps = ", ".join(f"{word} {i}" for i, word in enumerate(items, 1))
        noun = "word" if len(items) == 1 else "words"
        answer, reasoning = f"{steps}. That is {len(items)} {noun}.", "I number each word."
    else:
        letters = rng.choice(words.COMMON)
        steps = ", ".join(f"{letter} {i}" for i, letter in enumerate(letters, 1))
        asks = (
            "How many letters does {} have?",
            "Count the letters in {}.",
            "How long is the word {}?",
        )
        question = rng.choice(asks).format(letters)
        answer, reasoning = f"{steps}. That is {len(letters)} letters.", "I number each letter."
    return _sample(rng, "count", question, question, answer, reasoning)


def listing(rng: random.Random) -> Sample:
    kind = rng.choice(list(_LISTS))
    count = rng.randint(2, 7)
    items = _LISTS[kind][:count] if kind in _ORDERED else sorted(rng.sample(_LISTS[kind], count))
    number = str(count) if rng.random() < 0.4 else _NUMBERS[count - 1]
    asks = ("List {} {}.", "Name {} {}.", "Give me {} {}.", "Tell me {} {}.", "Write down {} {}.", "Can you name {} {}?", "I need {} {}.")  # fmt: skip
    question = rng.choice(asks).format(number, kind)
    style = rng.random()
    if style < 0.35:
        question += rng.choice((" One per line.", " Use bullet points.", " As a list."))
        answer = "\n".join(f"- {item}" for item in items)
    elif style < 0.6:
        question += rng.choice((" Number them.", " As a numbered list."))
        answer = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    else:
        answer = ", ".join(items)
    return _sample(
        rng, "list", f"{question} {rng.random()}", question, answer, f"I need {count} {kind}."
    )
