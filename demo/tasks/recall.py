"""Finding one thing again: a passkey in noise, or what the user said turns ago."""

import random

from demo import words
from demo.sample import Message, Sample, assistant, system, user


def filler(rng: random.Random) -> str:
    a, b, c = rng.choice(words.ADJECTIVES), rng.choice(words.THINGS), rng.choice(words.ANIMALS)
    return rng.choice(
        (
            f"The {a} {b} is here.", f"A {c} sleeps near the {b}.", f"The {c} likes the {a} {b}.",
            f"{rng.choice(words.NAMES)} has a {a} {b}.", f"It is {a} in {rng.choice(words.CITIES)} today.",
            f"We saw {rng.randint(2, 99)} {b}s.", f"The {b} belongs to {rng.choice(words.NAMES)}.",
        )
    )  # fmt: skip


_NAMES = ("passkey", "pass key", "secret number", "code", "password", "magic number", "secret code", "key")  # fmt: skip


def passkey(rng: random.Random) -> Sample:
    # Mostly short: finding is learnt there, and length is paid for by the token.
    num_sentences = int(2 ** rng.uniform(1.0, 6.5))
    return hide(rng, num_sentences, rng.random())


def long_passkey(rng: random.Random) -> Sample:
    return hide(rng, int(2 ** rng.uniform(6.5, 8.3)), rng.random())


def hide(rng: random.Random, num_sentences: int, depth: float) -> Sample:
    name = rng.choice(_NAMES)
    secret = str(rng.randint(1000, 99999)) if rng.random() < 0.8 else words.word(rng)
    hidden = rng.choice(
        (
            f"The {name} is {secret}.", f"Remember: the {name} is {secret}.",
            f"The {name} is {secret}. Remember it. {secret} is the {name}.",
        )
    )  # fmt: skip
    sentences = [filler(rng) for _ in range(num_sentences)]
    sentences.insert(round(depth * num_sentences), hidden)
    text = " ".join(sentences)
    question = rng.choice((f"What is the {name}?", f"Tell me the {name}.", f"Which {name} was in the text?"))  # fmt: skip
    messages = [user(f"{text}\n\n{question}" if rng.random() < 0.8 else f"{question}\n\n{text}")]
    if rng.random() < 0.15:
        messages = [system(text), user(question)]
    thinking = rng.random() < 0.3
    answer = f"The {name} is {secret}."
    messages.append(assistant(answer, reasoning=f"The text says {secret}." if thinking else ""))
    return Sample("passkey", f"{secret} {num_sentences}", messages, thinking=thinking)


# (value, ways to say it, ways to ask for it, the answer, topic)
Fact = tuple[str, tuple[str, ...], tuple[str, ...], str, str]


def _facts(rng: random.Random) -> list[Fact]:
    name, city, colour = words.person(rng), words.city(rng), rng.choice(words.COLOURS)
    age, animal, pet = rng.randint(5, 99), rng.choice(words.ANIMALS), words.person(rng)
    job, hobby, food = (rng.choice(c) for c in (words.PROFESSIONS, words.HOBBIES, words.FOODS))
    number, friend, secret = rng.randint(2, 999), words.person(rng), words.word(rng)
    return [
        (name, ("My name is {}.", "I am {}.", "I'm {}.", "Call me {}.", "Hi, my name is {}.", "Hello, I am {}!", "my name is {}"),
         ("What is my name?", "Who am I?", "Do you remember my name?", "What's my name?", "Tell me my name."), f"Your name is {name}.", "name"),
        (city, ("I live in {}.", "My home is in {}.", "I am from {}.", "My city is {}."),
         ("Where do I live?", "Which city do I live in?", "Where am I from?", "What is my city?"), f"You live in {city}.", "city"),
        (colour, ("My favourite colour is {}.", "I like the colour {} best.", "My favorite color is {}."),
         ("What is my favourite colour?", "Which colour do I like best?", "What is my favorite color?"), f"Your favourite colour is {colour}.", "colour"),
        (str(age), ("I am {} years old.", "My age is {}.", "I'm {} years old."), ("How old am I?", "What is my age?"), f"You are {age} years old.", "age"),
        (pet, (f"My {animal} is called {{}}.", f"I have a {animal} named {{}}.", f"My {animal}'s name is {{}}."),
         (f"What is my {animal} called?", f"What is the name of my {animal}?"), f"Your {animal} is called {pet}.", "pet"),
        (job, ("I work as a {}.", "My job is {}.", "I am a {} by profession."), ("What is my job?", "What do I do for a living?", "What do I work as?"), f"You work as a {job}.", "job"),
        (hobby, ("My hobby is {}.", "I love {}.", "In my free time I do {}."), ("What is my hobby?", "What do I do in my free time?"), f"Your hobby is {hobby}.", "hobby"),
        (food, ("My favourite food is {}.", "I like to eat {}."), ("What is my favourite food?", "What do I like to eat?"), f"Your favourite food is {food}.", "food"),
        (str(number), ("My lucky number is {}.", "Remember the number {}.", "Please remember this number: {}."), ("What is my number?", "Which number did I tell you?", "What was the number?"), f"The number is {number}.", "number"),
        (friend, ("My friend is called {}.", "My best friend is {}."), ("What is my friend called?", "Who is my best friend?"), f"Your friend is called {friend}.", "friend"),
        (secret, ("The secret word is {}.", "Remember the word {}.", "Please remember the word {}."), ("What is the secret word?", "Which word did I tell you?", "What was the word?"), f"The word is {secret}.", "word"),
    ]  # fmt: skip


_REPLIES = ("Nice to know! I will remember that.", "Thank you, I will remember it.", "Noted.", "Okay, I will keep that in mind.")  # fmt: skip

_NOT_TOLD = "You have not told me that."


def memory(rng: random.Random) -> Sample:
    """Things told in earlier turns, and one of them asked for."""
    facts = rng.sample(_facts(rng), rng.choice((1, 1, 2, 2, 3, 4)))
    messages = _told(rng, facts)
    if rng.random() < 0.12:  # something that was never said
        return _never_told(rng, messages, facts)
    return _asked(rng, messages, rng.choice(facts))


def interview(rng: random.Random) -> Sample:
    """Several questions one after the other, also for things that were not said."""
    drawn = rng.sample(_facts(rng), rng.choice((3, 4, 5, 6)))
    facts = drawn[: rng.randint(2, len(drawn))]
    messages = _told(rng, facts)
    rng.shuffle(drawn)
    for fact in drawn:
        answer = fact[3] if fact in facts else _NOT_TOLD
        messages += [user(rng.choice(fact[2])), assistant(answer)]
    return _asked(rng, messages, rng.choice(facts))


def _told(rng: random.Random, facts: list[Fact]) -> list[Message]:
    messages: list[Message] = []
    together = rng.random() < 0.25
    said = [rng.choice(fact[1]).format(fact[0]) for fact in facts]
    if together:
        messages += [user(" ".join(said)), assistant(rng.choice(_REPLIES))]
    else:
        for text in said:
            messages += [user(text), assistant(rng.choice(_REPLIES))]
            if rng.random() < 0.35:
                messages += _chatter(rng)
    if rng.random() < 0.4:
        messages += _chatter(rng)
    return messages


def _asked(rng: random.Random, messages: list[Message], fact: Fact) -> Sample:
    thinking = rng.random() < 0.4
    messages += [
        user(rng.choice(fact[2])),
        assistant(fact[3], reasoning=f"The user told me: {fact[0]}." if thinking else ""),
    ]
    return Sample("memory", f"{fact[4]} {fact[0]}", messages, thinking=thinking)


def _chatter(rng: random.Random) -> list[Message]:
    country, city = rng.choice(list(words.CAPITALS.items()))
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    fruit = rng.choice(words.FRUITS)
    question, answer = rng.choice(
        (
            (f"What is the capital of {country}?", f"The capital of {country} is {city}."),
            (f"What is {a} + {b}?", f"{a} + {b} = {a + b}."),
            ("How are you?", "I am fine, thank you. How can I help you?"),
            (f"Spell {fruit}.", "-".join(fruit.upper())),
            (f"Repeat after me: {fruit}", fruit),
            ("Thanks!", "You are welcome!"),
        )
    )
    return [user(question), assistant(answer)]


def _never_told(rng: random.Random, messages: list[Message], facts: list[Fact]) -> Sample:
    said = {fact[4] for fact in facts}
    absent = [fact for fact in _facts(rng) if fact[4] not in said]
    asked = rng.choice(absent)
    thinking = rng.random() < 0.4
    messages += [
        user(rng.choice(asked[2])),
        assistant(_NOT_TOLD, reasoning="The user has not told me that." if thinking else ""),
    ]
    return Sample("memory", f"absent {rng.random()}", messages, thinking=thinking)


def told_now(rng: random.Random) -> Sample:
    """The turn in which something is told: it is noted, or the user greeted by name."""
    fact = rng.choice(_facts(rng))
    text = rng.choice(fact[1]).format(fact[0])
    answer = f"Nice to meet you, {fact[0]}!" if fact[4] == "name" else _REPLIES[1]
    thinking = rng.random() < 0.4
    reasoning = "The user tells me something. I will remember it." if thinking else ""
    messages = [user(text), assistant(answer, reasoning=reasoning)]
    return Sample("told", f"{fact[4]} {fact[0]}", messages, thinking=thinking)
