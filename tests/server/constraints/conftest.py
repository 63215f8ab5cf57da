from collections.abc import Iterator

import pytest

from server.constraints import ConstraintReader
from server.constraints_checker import GrammarChecker
from tests.engine.grammar.sampling import Babbler


@pytest.fixture(scope="session")
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker()
    yield checker
    checker.close()


@pytest.fixture(scope="session")
def reader(checker: GrammarChecker) -> ConstraintReader:
    return ConstraintReader(checker)


@pytest.fixture(scope="session")
def babbler() -> Babbler:
    return Babbler()
