"""The page in a real browser, without a window: what people do with it, and that nothing goes wrong unseen."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright: the extra `dev`")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
WAIT = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Browser, address: str, scheme: Literal["light", "dark"] = "light", width: int = 1280
) -> Iterator[Page]:
    """A fresh visitor; the console must stay free of errors, and nothing may be fetched from elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    wrong: list[str] = []
    page.on("console", lambda one: wrong.append(one.text) if one.type == "error" else None)
    # Leaving or reloading a page cuts off what it was fetching.
    page.on("pageerror", lambda one: None if "AbortError" in str(one) else wrong.append(f"error: {one}"))
    page.on("request", lambda one: wrong.append(one.url) if is_elsewhere(one.url, address) else None)
    page.on("dialog", lambda one: wrong.append(f"dialog: {one.message}"))
    page.goto(address)
    page.locator("#ask").wait_for()
    page.locator("#picture img").wait_for()
    yield page
    context.close()
    assert wrong == []


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with visit(browser, address) as page:
        yield page


def is_elsewhere(url: str, address: str) -> bool:
    return not url.startswith((address.rstrip("/"), "data:", "blob:"))


def show_example(page: Page, number: int) -> None:
    picture = page.locator("#picture img")
    before = picture.get_attribute("src") if picture.count() else ""
    page.locator("#examples .thumbnail-lg").nth(number).click()
    expect(picture).not_to_have_attribute("src", before or "")


def ask(page: Page, question: str = "Describe the image.") -> None:
    page.locator("#prompt textarea").fill(question)
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text(re.compile("tokens? in"))


def source(page: Page, name: str) -> str:
    return page.locator(f"#{name} img").first.get_attribute("src") or ""


def test_ask_click_a_word_and_move_a_slider(page: Page) -> None:
    show_example(page, 1)
    ask(page)
    words = page.locator("#answer .token")
    expect(words).to_have_count(9)
    expect(page.locator("#answer")).to_contain_text("scissors")
    expect(page.locator("#line")).to_contain_text("toilet")
    before = source(page, "map")
    words.nth(3).click()
    expect(page.locator("#line")).to_contain_text("scissors")
    expect(page.locator("#map img")).not_to_have_attribute("src", before)
    before = source(page, "map")
    page.locator("#question .token").nth(0).click()
    expect(page.locator("#line")).to_contain_text("Describe")
    expect(page.locator("#map img")).not_to_have_attribute("src", before)
    before = source(page, "map")
    page.locator("#layer input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#layer input[type=range]").dispatch_event("pointerup")
    expect(page.locator("#line")).to_contain_text("layer 3, head 0")
    expect(page.locator("#map img")).not_to_have_attribute("src", before)
    page.locator("#heads .thumbnail-lg").nth(5).click()
    expect(page.locator("#line")).to_contain_text("layer 3, head 5")


def test_export(page: Page, tmp_path: Path) -> None:
    show_example(page, 1)
    ask(page)
    page.get_by_text("Export: picture, numbers, Python").first.click()
    page.get_by_role("button", name="Export this view").first.click()
    expect(page.locator(".export").first).to_contain_text("import mmattn")
    with page.expect_download() as download:
        page.locator(".export").first.get_by_text(re.compile("KB|B$")).first.click()
    download.value.save_as(tmp_path / "ask.png")
    assert (tmp_path / "ask.png").read_bytes().startswith(b"\x89PNG")


def test_html_is_shown_and_never_run(page: Page) -> None:
    show_example(page, 1)
    ask(page, "<img src=x onerror=alert(1)> <b>what</b> ${alert(2)} ?")
    expect(page.locator("#question")).to_contain_text("<b>what</b> ${alert(2)}")
    page.locator("#question .token").nth(1).click()
    expect(page.locator("#line")).to_contain_text("src=x")
    page.locator("#question .token").nth(4).click()
    expect(page.locator("#line")).to_contain_text("alert(2)")
    assert page.locator("#question img, #line img, #question b").count() == 0


def test_without_a_picture_the_page_says_so(page: Page) -> None:
    page.locator("#picture").get_by_role("button", name=re.compile("clear|remove", re.IGNORECASE)).first.click()
    page.locator("#ask").click()
    expect(page.locator(".toast-body")).to_contain_text("Upload one, or click an example")
    show_example(page, 0)
    ask(page)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_compare_and_change_a_hyper_parameter(page: Page) -> None:
    open_tab(page, "Compare")
    page.locator("#parameters-1 button").first.click()
    page.locator("#parameters-1 input[type=number]").first.fill("2")
    page.keyboard.press("Tab")
    expect(page.locator("#expression-1 textarea, #expression-1 input")).to_have_value("vcd(alpha=2)")
    page.locator("#compare").click()
    expect(page.locator("#cost-1")).to_contain_text("2 row(s) a step")
    expect(page.locator("#cost-0")).to_contain_text("1 invented")
    expect(page.locator("#compared-0 .token", has_text="bowl")).to_have_count(1)


def test_ground_and_click(page: Page) -> None:
    open_tab(page, "Ground")
    page.locator("#ground").click()
    expect(page.locator("#found")).to_contain_text("inside the true box")
    before = source(page, "place")
    page.locator("#place img").click(position={"x": 40, "y": 60})
    expect(page.locator("#found")).to_contain_text("is outside the true box")
    expect(page.locator("#place img")).not_to_have_attribute("src", before)


def test_brush_and_ask_again(page: Page) -> None:
    open_tab(page, "Prompt")
    canvas = page.locator("#editor canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)  # the drawing fits itself into the page
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 40, middle[1] + 30, steps=4)
    page.mouse.up()
    page.locator("#lead").click()
    expect(page.locator("#led")).to_contain_text("lay in what you painted")
    expect(page.locator("#after .token").first).to_be_visible()
    page.locator("#dim").click()
    expect(page.locator("#led")).to_contain_text("picture on the right")


def test_inspect(page: Page) -> None:
    open_tab(page, "Inspect")
    page.locator("#inspect").click()
    expect(page.locator("#sinks")).to_contain_text("sink")
    expect(page.locator("#along img")).to_be_visible()
    expect(page.locator("#inspected")).to_contain_text("The image shows")


def test_it_fits_a_phone_light_and_dark(browser: Browser, address: str) -> None:
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    seen = set()
    for scheme in schemes:
        with visit(browser, address, scheme, 390) as page:
            ask(page)
            seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            for name in ("Ask", "Compare", "Ground"):  # the others are in a menu
                open_tab(page, name)
                assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    assert len(seen) == 2, "dark should not look like light"
