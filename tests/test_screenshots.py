"""Which search of a store the pictures show, and the messages where there is none to show (no
browser is needed).
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from docs import screenshots
from tune_mm.errors import UserError
from tune_mm.reports.runs.store import Reader
from tune_mm.track import Store, Writer, views

LAMS = ("0.1", "0.2", "0.4", "0.4")


def write(store: Store, name: str, rhos: tuple[str, ...], space: str = "space") -> None:
    """A completed search with a trial for each rho; lam is as in LAMS, optim.name the same
    everywhere.
    """
    with Writer(store, space, search=name) as writer:
        parent = writer.start(name, tags={"stage": "search", "seed": 0}, key="search")
        for number, rho in enumerate(rhos):
            params = {"method.rho": rho, "method.lam": LAMS[number], "optim.name": "adam"}
            tags = {"stage": "search", "seed": 0, "trial": number}
            run = writer.start(
                f"search {number}", params, tags, parent=parent, key=f"search/{number}"
            )
            writer.finish(run, "completed")
        writer.artifact(parent, "<h1>page</h1>", f"reports/search_{name}.html")
        writer.finish(parent, "completed")


def save_views(store: Store, space: str = "space") -> None:
    shown = views.columns("val/f1", ("audio",), ("optim.name", "method.rho", "method.lam"))
    views.save(store, store.experiment(space), views.views(shown, "max"))


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Store:
    shutil.copyfile(template, tmp_path / "mlflow.db")
    return Store.open(f"sqlite:///{tmp_path}/mlflow.db", tmp_path)


def test_the_latest_search_is_shown_over_what_it_varied(store: Store) -> None:
    write(store, "one", ("1.0", "1.1", "1.2"))
    write(store, "two", ("1.0", "1.1", "1.2", "1.3"))
    save_views(store)
    found = screenshots.latest(store.uri)
    assert found == screenshots.Search("two", "space", ("method.rho", "method.lam"), "best/val/f1")


def test_only_numbers_with_three_values_vary(store: Store) -> None:
    write(store, "one", ("1.0", "1.0", "2.0"))
    trials = [r for r in Reader.open(store.uri, Path.cwd()).records() if r.parent]
    assert screenshots.varied(("optim.name", "method.rho", "method.lam", "absent"), trials) == [
        "method.lam"
    ]


def test_a_search_with_one_axis_is_refused(store: Store) -> None:
    write(store, "one", ("1.0", "1.0", "2.0"))
    save_views(store)
    with pytest.raises(
        UserError, match="search 'one': a contour needs two params that vary, got 1"
    ):
        screenshots.latest(store.uri)


def test_a_search_without_views_or_page_is_refused_with_the_command_that_adds_them(
    store: Store,
) -> None:
    write(store, "one", ("1.0", "1.1", "1.2"))
    with pytest.raises(
        UserError, match=r"no saved views; `python -m tune_mm.search --name one --resume` adds them"
    ):
        screenshots.latest(store.uri)
    with Writer(store, "space", search="late") as writer:
        writer.finish(
            writer.start("late", tags={"stage": "search", "seed": 0}, key="search"), "completed"
        )
    save_views(store)
    with pytest.raises(UserError, match=r"no page; `python -m tune_mm.report search late` adds it"):
        screenshots.latest(store.uri)


def test_a_store_without_a_completed_search_is_refused(store: Store) -> None:
    with Writer(store, "space", search="broken off") as writer:
        writer.start("broken off", tags={"stage": "search", "seed": 0}, key="search")
    with pytest.raises(UserError, match="no search of it is completed"):
        screenshots.latest(store.uri)


def test_a_missing_store_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        screenshots.latest(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_the_first_browser_on_path_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"no browser on PATH: looked for chromium, .*apt-get install chromium"
    ):
        screenshots.browser()
    for name in ("google-chrome", "chromium"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert screenshots.browser() == str(tmp_path / "chromium")


def test_a_server_that_ends_at_once_is_told_of_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of memory\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with (
        pytest.raises(
            UserError, match=r"does not answer at http://127\.0\.0\.1:\d+: out of memory"
        ),
        screenshots.served("sqlite:///unused.db", tmp_path),
    ):
        pass
