"""`NAME=VALUE` -> `Limits`, and `Limits` as a table: the ways an operator writes and reads them."""

import difflib
from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import replace

from server.flag_values import number, size, whole_number
from server.limits import BOUNDS, DEFAULT_LIMITS, Bound, Limits, value_of


def with_settings(limits: Limits, settings: Iterable[str]) -> Limits:
    """`limits` changed by each `NAME=VALUE`. Raises ArgumentTypeError, which says what is wrong."""
    for setting in settings:
        written, equals, text = setting.partition("=")
        name = written.strip().replace("-", "_")
        if not equals:
            raise ArgumentTypeError(f"{setting} is not a limit: write NAME=VALUE")
        if name not in BOUNDS:
            near = difflib.get_close_matches(name, BOUNDS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ArgumentTypeError(f"there is no limit {written.strip()}{hint}")
        limits = replace(limits, **{name: _value(name, text.strip(), BOUNDS[name])})
    return limits


def setting(text: str) -> str:
    """Check one `NAME=VALUE`; it stays text, for flags add up."""
    with_settings(DEFAULT_LIMITS, [text])
    return text


def describe_limits(limits: Limits) -> str:
    """One line for each limit: its name, its value, what it may be, what it bounds."""
    rows = [
        (name, _shown(name, value_of(limits, name)), _range(name, bound), bound.what)
        for name, bound in BOUNDS.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{name:<{widths[0]}}  {value:>{widths[1]}}  {allowed:<{widths[2]}}  {what}"
        for name, value, allowed, what in rows
    )


def _value(name: str, text: str, bound: Bound) -> float:
    try:
        if name.endswith("_bytes"):
            value = size(text)
        elif isinstance(value_of(DEFAULT_LIMITS, name), float):
            value = number(text)
        else:
            value = whole_number(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{name}: {error}") from None
    if not bound.least <= value <= bound.most:
        raise ArgumentTypeError(f"{name}={text} is out of its range, {_range(name, bound)}")
    return value


def _range(name: str, bound: Bound) -> str:
    return f"{_shown(name, bound.least)} to {_shown(name, bound.most)}"


def _shown(name: str, value: float) -> str:
    """A value as `--limit` reads it."""
    if name.endswith("_bytes"):
        for unit, width in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
            if value >= 1 << width and not value % (1 << width):
                return f"{int(value) >> width}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)
