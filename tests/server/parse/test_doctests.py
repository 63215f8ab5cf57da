"""The examples in the docstrings of the parser do what they show."""

import doctest

from server.parse import machine


def test_examples():
    results = doctest.testmod(machine)
    assert results.attempted > 8
    assert results.failed == 0
