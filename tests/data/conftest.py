"""A cache of its own for every test, and no data root from the environment."""

from pathlib import Path

import pytest

from tune_mm.data import base


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, an empty working folder and no TUNE_MM_DATA."""
    folder = tmp_path / "cache"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv(base.ENV_CACHE, str(folder))
    monkeypatch.delenv(base.ENV_ROOT, raising=False)
    monkeypatch.chdir(work)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny BERT and a tiny ViT."""
    from tests.data.features.pretrained import pair  # skips where transformers is not installed

    return pair(tmp_path_factory.mktemp("models"))
