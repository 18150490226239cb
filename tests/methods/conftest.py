"""Models that methods train beforehand are cached; those of tests go to a cache of their own."""

from collections.abc import Iterator

import pytest

from tune_mm.filesystem import ENV_CACHE


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_CACHE, str(tmp_path_factory.mktemp("cache")))
        yield
