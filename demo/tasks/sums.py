"""Small arithmetic, worked out digit by digit where it can be seen.

Every step is one fact that can be known by heart: digits that are added or multiplied, or two small
numbers that are added. What is carried is the tens of the step before.
"""

import random

from demo import words
from demo.sample import Sample, assistant, user

_ASKS = {
    "+": ("{a} + {b}", "{a} plus {b}", "the sum of {a} and {b}"),
    "-": ("{a} - {b}", "{a} minus {b}", "{b} subtracted from {a}"),
    "*": ("{a} * {b}", "{a} times {b}", "{a} x {b}", "{a} multiplied by {b}", "the product of {a} and {b}"),
    "/": ("{a} / {b}", "{a} divided by {b}"),
}  # fmt: skip
_QUESTIONS = (
    "What is {}?", "Compute {}.", "How much is {}?", "Calculate {}.", "{}?", "{} = ?", "Work out {}.",
    "Please compute {}.", "Tell me {}.", "Can you calculate {}?", "What's {}?", "Solve {}.", "{}",
    "What do you get for {}?", "I need {}.", "Hey, what is {}?", "Quick question: what is {}?",
)  # fmt: skip


def sums(rng: random.Random) -> Sample:
    operator = rng.choice("++--***/")
    a, b = (rng.randint(0, 99 if rng.random() < 0.75 else 9) for _ in range(2))
    if operator == "/":
        b = rng.randint(1, 12)
        a = b * rng.randint(0, 99 // b)
    return ask(rng, operator, a, b)


def ask(rng: random.Random, operator: str, a: int, b: int) -> Sample:
    question = rng.choice(_QUESTIONS).format(rng.choice(_ASKS[operator]).format(a=a, b=b))
    question = question[0].upper() + question[1:]
    working, result = _WORK[operator](a, b)
    answer = f"{a} {operator} {b} = {result}."
    thinking = rng.random() < 0.5
    if not thinking and working.count(".") > 1:  # it is worked out in sight all the same
        answer = f"{working} {answer}"
    messages = [user(question), assistant(answer, reasoning=working if thinking else "")]
    return Sample("sums", f"{a}{operator}{b}", messages, thinking=thinking)


def facts(rng: random.Random) -> Sample:
    """The steps that sums are made of, many at once."""
    steps: dict[str, int] = {}
    for _ in range(rng.randint(4, 16)):
        kind, (a, b) = rng.random(), (rng.randint(0, 9) for _ in range(2))
        if kind < 0.3:
            steps[f"{a}*{b}"] = a * b
        elif kind < 0.45:
            c = rng.randint(0, 1)
            steps[f"{a}+{b}+{c}" if c else f"{a}+{b}"] = a + b + c
        elif kind < 0.6:
            a += rng.choice((0, 10)) if a < b else 0
            c = rng.randint(0, 1)
            if a - b - c >= 0:
                steps[f"{a}-{c}-{b}" if c else f"{a}-{b}"] = a - b - c
        elif kind < 0.85:
            left, right = a * rng.randint(1, 9), b * rng.randint(1, 9)
            steps[f"{left}+{right}"] = left + right
        else:
            left = rng.randint(0, 99)
            steps[f"{left}+{b}"] = left + b
    asked = words.enumeration(list(steps)) if rng.random() < 0.5 else ", ".join(steps)
    question = rng.choice(_QUESTIONS).format(asked)
    answer = ", ".join(f"{step}={result}" for step, result in steps.items())
    return Sample("facts", asked, [user(question), assistant(f"{answer}.")])


def _plus(a: int, b: int) -> tuple[str, int]:
    if max(a, b) < 10:
        return f"{a}+{b}={a + b}.", a + b
    ones = a % 10 + b % 10
    carried = "+1" if ones > 9 else ""
    tens = a // 10 + b // 10 + ones // 10
    text = f"Ones: {a % 10}+{b % 10}={ones}. Tens: {a // 10}+{b // 10}{carried}={tens}."
    return f"{text} So {a + b}.", a + b


def _minus(a: int, b: int) -> tuple[str, int]:
    if a < b:
        text, result = _minus(b, a)
        return f"{b} is larger than {a}: it is negative. {text} So -{result}.", -result
    if a < 10:
        return f"{a}-{b}={a - b}.", a - b
    ones = a % 10 - b % 10
    borrowed, taken = (10, "-1") if ones < 0 else (0, "")
    tens = a // 10 - b // 10 - borrowed // 10
    text = f"Ones: {a % 10 + borrowed}-{b % 10}={ones + borrowed}. Tens: {a // 10}{taken}-{b // 10}={tens}."  # fmt: skip
    return f"{text} So {a - b}.", a - b


def _times(a: int, b: int) -> tuple[str, int]:
    if a < 10 and b < 10:
        return f"{a}*{b}={a * b}.", a * b
    if a < 10:
        text, result = _times(b, a)
        return f"{a}*{b}={b}*{a}. {text}", result
    ones = (a % 10) * (b % 10)
    column, steps = (a // 10) * (b % 10), [f"{a // 10}*{b % 10}={(a // 10) * (b % 10)}"]
    if b > 9:
        cross = (a % 10) * (b // 10)
        steps += [f"{a % 10}*{b // 10}={cross}", f"{column}+{cross}={column + cross}"]
        column += cross
    if ones > 9:
        steps.append(f"{column}+{ones // 10}={column + ones // 10}")
        column += ones // 10
    text = f"Ones: {a % 10}*{b % 10}={ones}. Tens: {', '.join(steps)}."
    if b > 9:
        column_of_hundreds = (a // 10) * (b // 10)
        steps = [f"{a // 10}*{b // 10}={column_of_hundreds}"]
        if column > 9:
            steps.append(f"{column_of_hundreds}+{column // 10}={column_of_hundreds + column // 10}")
        text = f"{text} Hundreds: {', '.join(steps)}."
    return f"{text} So {a * b}.", a * b


def _divided(a: int, b: int) -> tuple[str, int]:
    return f"{b}*{a // b}={a}.", a // b


_WORK = {"+": _plus, "-": _minus, "*": _times, "/": _divided}
