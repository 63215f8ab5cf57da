import pytest

from tests.engine.grammar.sampling import Babbler


@pytest.fixture(scope="session")
def babbler() -> Babbler:
    return Babbler()
