"""The reader of constraints that all validators of a test run share, with its worker processes."""

from collections.abc import Iterator

import pytest

from server.constraints import ConstraintReader, GrammarChecker


@pytest.fixture(scope="session")
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker()
    yield checker
    checker.close()


@pytest.fixture(scope="session")
def reader(checker: GrammarChecker) -> ConstraintReader:
    return ConstraintReader(checker)
