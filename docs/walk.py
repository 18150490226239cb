"""A walk through MLflow's pages as the README tells it, by clicks; a picture at each station."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import Error, Page, Route, sync_playwright

from tune_mm.errors import UserError

if TYPE_CHECKING:
    from docs.screenshots import Search

WIDTH, HEIGHT, TALL = 1400, 900, 1080
PATIENCE = 60_000  # ms for anything to appear
SETTLE = 1500  # ms for a plot or a table that is there to stand still


def walk(executable: str, address: str, search: Search, out: Path) -> Iterator[Path]:
    """Take the pictures, each yielded once written. Raises UserError when the pages are not as
    expected.
    """
    with opened(executable, address) as page:
        for station in (runs, parallel, contour, gradients, description, artifacts):
            try:
                station(page, search)
                page.wait_for_timeout(SETTLE)
                picture = small(page.screenshot())
            except Error as error:
                place = f"'{station.__name__}' ({page.url.partition('?')[0]})"
                raise UserError(
                    f"MLflow's pages are not as expected at {place}: {_reason(error)}"
                ) from None
            path = out / f"{station.__name__}.png"
            path.write_bytes(picture)
            yield path


def small(png: bytes) -> bytes:
    """The picture in 256 colours: pages need no more, and a repository keeps every version."""
    target = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256).save(target, "PNG", optimize=True)
    return target.getvalue()


@contextmanager
def opened(executable: str, address: str) -> Iterator[Page]:
    """The list of experiments under *Model training*, in a browser that reaches nothing but
    `address`.
    """
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=executable, args=["--disable-gpu", "--disable-quic"]
            )
        except Error as error:
            raise UserError(f"{executable} does not start: {_reason(error)}") from None
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(PATIENCE)

        def local(route: Route) -> None:
            if route.request.url.startswith(address):
                route.continue_()
            else:
                route.abort()

        page.route("**/*", local)
        try:
            page.goto(f"{address}/#/experiments")
            page.get_by_text("Model training", exact=True).click()
            page.get_by_role("button", name="Close", exact=True).click()  # the assistant's panel
            yield page
        finally:
            browser.close()


# ---- stations, each from where the one before has ended


def runs(page: Page, search: Search) -> None:
    """Experiment, view *searches*, the newest search unfolded."""
    page.get_by_role("link", name=search.space, exact=True).last.click()
    _view(page, "searches")
    row = page.locator(
        "[role=row]", has=page.get_by_role("link", name=search.name, exact=True)
    ).first
    row.get_by_role("button").first.click()
    page.get_by_role("link", name="final 0", exact=True).first.wait_for()


def parallel(page: Page, search: Search) -> None:
    """View *trials*, all selected, *Compare*: parallel coordinates."""
    _view(page, "trials")
    page.get_by_label("Select all runs").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("button", name="Clear All").click()
    params, metrics = page.get_by_role("combobox").nth(0), page.get_by_role("combobox").nth(1)
    for box, names in ((params, search.axes), (metrics, (search.metric,))):
        for name in names:
            box.click()  # a box that is not open takes no text
            box.fill(name)
            page.get_by_title(name, exact=True).last.click()
        page.keyboard.press("Escape")
    page.locator(".parcoords").first.wait_for(state="attached")


def contour(page: Page, search: Search) -> None:
    """The same trials as a contour over two params."""
    page.get_by_role("tab", name="Contour Plot").click()
    for axis, name in zip("xyz", (*search.axes, search.metric), strict=True):
        page.locator(f"#{axis}axis-selector").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.locator(".contourlayer").first.wait_for(state="attached")


def gradients(page: Page, search: Search) -> None:
    """The best trial: what the losses send to each encoder, by epoch."""
    page.get_by_role("link", name=search.space, exact=True).last.click()
    _view(page, "trials")
    page.locator("[row-index='0'] a").first.click()
    page.get_by_role("tab", name="Model metrics").click()
    page.set_viewport_size({"width": WIDTH, "height": TALL})  # two rows of charts
    page.get_by_placeholder("Search metric charts").fill("grad/norm_")
    page.get_by_text("grad/norm_uni").first.wait_for()


def description(page: Page, search: Search) -> None:
    """The parent run: what was searched, what came out."""
    page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
    page.get_by_role("link", name=search.space, exact=True).last.click()
    _view(page, "searches")
    page.get_by_role("link", name=search.name, exact=True).first.click()
    page.get_by_text("Show more", exact=True).first.click()


def artifacts(page: Page, search: Search) -> None:
    """The search's page among the parent run's artifacts."""
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("reports", exact=True).click()
    page.get_by_text(f"search_{search.name}.html", exact=True).click()
    page.frame_locator("iframe").locator("h1").first.wait_for()


def _view(page: Page, name: str) -> None:
    """Open a saved view, and wait until the table has its runs."""
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_role("menu").get_by_text(name, exact=True).click()
    page.get_by_text("viewing a shared view").wait_for()
    page.locator("[row-index='0'] a").first.wait_for()
    page.wait_for_timeout(SETTLE)  # the table is drawn anew when the columns come


def _reason(error: Error) -> str:
    """What went wrong and, of a wait that took too long, for what."""
    return " ".join(error.message.split())[:300]
