"""Models that methods train beforehand are cached; those of tests go to a cache of their own."""

from collections.abc import Generator, Iterator

import pytest

from tests.support import Refused
from tune_mm.filesystem import ENV_CACHE


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """A test of a combination that the method refuses has passed once the refusal was found right."""
    try:
        return (yield)
    except Refused:
        return True
