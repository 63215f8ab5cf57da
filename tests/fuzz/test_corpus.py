"""Every input that fuzzing found worth keeping, once more."""

import pytest

from tests.fuzz.__main__ import TARGET_NAMES
from tests.fuzz.corpus import read_corpus
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_the_corpus_breaks_nothing(name: str):
    inputs = read_corpus(name)
    assert len(inputs) >= 9
    for data in inputs:
        TARGETS[name](data)


def test_targets_take_any_bytes():
    assert tuple(TARGETS) == TARGET_NAMES
    for target in TARGETS.values():
        for data in (b"", b"\0", b"\xff" * 50, bytes(range(256))):
            target(data)
