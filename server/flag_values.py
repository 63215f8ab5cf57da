"""Text of a flag's value -> value, or an `ArgumentTypeError` that says what would be right."""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable

UNITS = {
    "": 1, "b": 1,
    "k": 2**10, "kib": 2**10, "kb": 10**3,
    "m": 2**20, "mib": 2**20, "mb": 10**6,
    "g": 2**30, "gib": 2**30, "gb": 10**9,
    "t": 2**40, "tib": 2**40, "tb": 10**12,
}  # fmt: skip


def at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = whole_number(text)
        if value < least:
            raise ArgumentTypeError(f"{text} is less than {least}")
        return value

    return parse


def between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = whole_number(text)
        if not least <= value <= most:
            raise ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return parse


def length(text: str) -> int | None:
    """A number of tokens: 262144, 256k (k is 1024), or auto (None)."""
    if text in ("auto", "-1"):
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([kKmM]?)", text)
    value = int(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if value < 1:
        raise ArgumentTypeError(f"{text} is not a length: write 262144, 256k or auto")
    return value


def size(text: str) -> int:
    """A number of bytes: 4GiB, 512M (both binary), 4GB (decimal) or plain bytes."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kKmMgGtT]?[iI]?[bB]?)", text)
    value = int(float(match[1]) * UNITS.get(match[2].lower(), 0)) if match else 0
    if value < 1:
        raise ArgumentTypeError(f"{text} is not a size: write 4GiB, 512MiB or a number of bytes")
    return value


def share(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text} is not a share: write a number above 0, up to 1")
    return value


def positive(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise ArgumentTypeError(f"{text} is not above 0")
    return value


def temperature(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 2:
        raise ArgumentTypeError(f"{text} is not between 0 and 2")
    return value


def key(text: str) -> str:
    """An API key. The message never repeats it."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ArgumentTypeError("a key is a non-empty ASCII string without spaces")
    return text


def token_range(text: str) -> tuple[int, int]:
    """N for always N, N:M for anything from N to M."""
    match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text)
    least = int(match[1]) if match else 0
    most = int(match[2] or match[1]) if match else 0
    if not 1 <= least <= most:
        raise ArgumentTypeError(f"{text} is not a number of tokens: write 512 or 128:1024")
    return least, most


def whole_number(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,19}", text):
        raise ArgumentTypeError(f"{text} is not a whole number")
    return int(text)


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{text} is not a number")
    return value
