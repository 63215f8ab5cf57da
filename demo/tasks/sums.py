"""Small arithmetic, worked out digit by digit where it can be seen."""

import random

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
    symbol = {"*": rng.choice(("*", "*", "x", "×"))}.get(operator, operator)
    said = f"{a} {symbol} {b} = {result}"
    thinking = rng.random() < 0.7
    answer = f"{said}." if rng.random() < 0.8 else f"The answer is {result}."
    if not thinking and operator == "*" and max(a, b) > 9:
        answer = f"{working} So {said}."
    reasoning = working if thinking else ""
    messages = [user(question), assistant(answer, reasoning=reasoning)]
    return Sample("sums", f"{a}{operator}{b}", messages, thinking=thinking)


def _plus(a: int, b: int) -> tuple[str, int]:
    if max(a, b) < 10:
        return f"{a} + {b} = {a + b}.", a + b
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    carried = f", write {ones % 10}, carry 1" if carry else ""
    plus_carry = " + 1" if carry else ""
    text = (
        f"Ones: {a % 10} + {b % 10} = {ones}{carried}. "
        f"Tens: {a // 10} + {b // 10}{plus_carry} = {tens}. Together {a + b}."
    )
    return text, a + b


def _minus(a: int, b: int) -> tuple[str, int]:
    if a < b:
        text, result = _minus(b, a)
        return f"{b} is larger than {a}, so the result is negative. {text} So {-result}.", -result
    if a < 10:
        return f"{a} - {b} = {a - b}.", a - b
    ones, tens = a % 10 - b % 10, a // 10 - b // 10
    if ones < 0:
        text = (
            f"Ones: {a % 10} is less than {b % 10}, borrow: {a % 10 + 10} - {b % 10} = {ones + 10}. "
            f"Tens: {a // 10} - 1 - {b // 10} = {tens - 1}. Together {a - b}."
        )
    else:
        text = (
            f"Ones: {a % 10} - {b % 10} = {ones}. Tens: {a // 10} - {b // 10} = {tens}. "
            f"Together {a - b}."
        )
    return text, a - b


def _times_digit(a: int, digit: int) -> str:
    """a * digit by parts."""
    if a < 10:
        return f"{a} * {digit} = {a * digit}."
    high, low = a // 10 * 10, a % 10
    return (
        f"{a} * {digit}: {high} * {digit} = {high * digit}, {low} * {digit} = {low * digit}, "
        f"{high * digit} + {low * digit} = {a * digit}."
    )


def _times(a: int, b: int) -> tuple[str, int]:
    if b < 10:
        return _times_digit(a, b), a * b
    if a < 10:
        return f"{a} * {b} = {b} * {a}. {_times_digit(b, a)}", a * b
    tens, ones = b // 10, b % 10
    text = (
        f"{_times_digit(a, tens)} So {a} * {tens * 10} = {a * tens * 10}. {_times_digit(a, ones)} "
        f"{a * tens * 10} + {a * ones} = {a * b}."
    )
    return text, a * b


def _divided(a: int, b: int) -> tuple[str, int]:
    return f"{b} * {a // b} = {a}.", a // b


_WORK = {"+": _plus, "-": _minus, "*": _times, "/": _divided}
