"""The page in a real Chromium: by mouse, by keyboard, on a phone; nothing is asked of another host."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atrous.prediction.predictor import Predictor
from serving import Running, ids_of, photograph

pytestmark = pytest.mark.integration

BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
ARGUMENTS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --use-fake-device-for-media-stream
    --use-fake-ui-for-media-stream""".split()
PHOTO = photograph(size=(320, 213))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not BROWSER:
        pytest.skip("there is no Chromium: apt-get install chromium, or CHROMIUM=its path")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    yield from opened(browser, server, viewport={"width": 1280, "height": 860})


@pytest.fixture
def phone(browser: Any, server: Running) -> Iterator[Any]:
    yield from opened(browser, server, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)


def opened(browser: Any, server: Running, **options: Any) -> Iterator[Any]:
    """The page; at the end, that it had no error and asked this server alone."""
    context = browser.new_context(**options)
    page, errors, urls = context.new_page(), [], []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda request: urls.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("#examples img")
    yield page
    assert errors == []
    assert [url for url in urls if not url.startswith((server.url, "data:", "blob:"))] == []
    context.close()


def choose(page: Any, image: bytes, name: str = "holiday.jpg", kind: str = "image/jpeg") -> None:
    page.set_input_files("#file", files=[{"name": name, "mimeType": kind, "buffer": image}])


def finished(page: Any) -> None:
    page.wait_for_selector("#classes li")
    page.wait_for_selector("#busy", state="hidden")


def rows(page: Any) -> list[list[str]]:
    return [row.split("\n") for row in page.locator("#classes li").all_inner_texts()]


def downloaded(page: Any, button: str) -> tuple[str, bytes]:
    with page.expect_download() as event:
        page.click(button)
    return event.value.suggested_filename, Path(event.value.path()).read_bytes()


def test_a_photo_its_classes_and_downloads(page: Any, predictor: Predictor) -> None:
    expected = predictor(PHOTO)
    choose(page, PHOTO)
    finished(page)
    assert rows(page) == [[name, f"{share:.1%}"] for name, share in expected.areas.items()]
    boxes = page.locator("#classes input")
    assert [boxes.nth(i).is_checked() for i in range(boxes.count())] == [n != "background" for n in expected.areas]
    name, mask = downloaded(page, "#get-mask")
    assert name == "holiday-mask.png" and np.array_equal(ids_of(mask), expected.mask)
    page.locator("#opacity").fill("20")
    assert page.locator("#mask").evaluate("node => node.style.opacity") == "0.2"
    name, overlay = downloaded(page, "#get-overlay")
    drawn = [name for name in expected.areas if name != "background"]
    with Image.open(io.BytesIO(overlay)) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected.overlay(0.2, drawn)))
    name, cutout = downloaded(page, "#get-cutout")
    with Image.open(io.BytesIO(cutout)) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected.cutout(*drawn)))
    page.click("#none")
    assert page.locator("#get-cutout").is_disabled() and painted(page) == 0
    page.click("#all")
    assert painted(page) == 1


def painted(page: Any) -> float:
    """The share of the mask's canvas that is not transparent."""
    page.mouse.move(2, 2)
    share: float = page.locator("#mask").evaluate(
        "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return 4 * n / d.length; }"
    )
    return share


def test_the_pointer_names_the_class_and_its_share(page: Any, predictor: Predictor) -> None:
    expected = predictor(PHOTO)
    choose(page, PHOTO)
    finished(page)
    box = page.locator("#photo").bounding_box()
    ids = set()
    for across, down in ((0.5, 0.6), (0.02, 0.02), (0.3, 0.5)):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        i = int(expected.mask[int(down * 213), int(across * 320)])
        name = predictor.labels.names[i]
        assert page.locator("#tip").inner_text() == f"{name} {expected.areas[name]:.1%}"
        ids.add(i)
    assert len(ids) > 1
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


@pytest.mark.parametrize("size", [(1280, 700), (1100, 860), (390, 500)])
@pytest.mark.parametrize("shape", [(320, 213), (200, 320)])
def test_the_stage_fits_the_photo(page: Any, size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Also where its height decides, and where a scrollbar takes some of the width: no strip beside it."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    choose(page, photograph(size=shape))
    finished(page)
    page.wait_for_timeout(200)
    stage, photo, mask = (page.locator(f"#{name}").bounding_box() for name in ("stage", "photo", "mask"))
    assert photo == mask and photo["height"] <= 0.75 * size[1]
    assert photo["width"] / photo["height"] == pytest.approx(shape[0] / shape[1], rel=0.02)
    assert stage["width"] - photo["width"] == pytest.approx(2, abs=0.1) or stage["width"] == 300  # its border
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_more_classes_than_a_palette_has(browser: Any, many: tuple[Running, Predictor]) -> None:
    server, predictor = many
    for page in opened(browser, server):
        choose(page, PHOTO)
        finished(page)
        expected = predictor(PHOTO)
        assert len(rows(page)) == len(expected.areas) and rows(page)[0][0] == next(iter(expected.areas))
        assert page.evaluate("document.getElementById('facts').textContent").startswith("320 × 213 pixels")
        page.click("#all")
        assert painted(page) == 1


def test_by_keyboard_alone(page: Any) -> None:
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Cow":
            break
    page.keyboard.press("Enter")
    finished(page)
    page.focus("#stage")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    assert page.locator("#tip").inner_text() and page.locator("#said").inner_text() == page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    page.focus("#classes input")
    before = page.locator("#classes input").first.is_checked()
    page.keyboard.press("Space")
    assert page.locator("#classes input").first.is_checked() is not before
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert page.locator("#opacity-value").inner_text() == "61%"
    page.focus("#again")
    page.keyboard.press("Enter")
    assert page.locator("#start").is_visible() and page.evaluate("document.activeElement.id") == "choose"


def test_pasted_and_dropped(page: Any) -> None:
    give = """([bytes, event]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
        const made = event === 'paste' ? new ClipboardEvent(event, {clipboardData: data, bubbles: true})
            : new DragEvent(event, {dataTransfer: data, bubbles: true, cancelable: true});
        document.body.dispatchEvent(made);
    }"""
    for event in ("paste", "drop"):
        page.evaluate(give, [list(photograph(kind="PNG")), event])
        finished(page)
        page.click("#again")


def test_another_model_segments_again(page: Any) -> None:
    choose(page, PHOTO)
    finished(page)
    with page.expect_request(lambda request: "model=second" in request.url):
        page.select_option("#model", "second")
    finished(page)


def test_errors_are_said_and_the_last_result_stays(page: Any) -> None:
    choose(page, b"hello", "notes.txt", "text/plain")
    page.wait_for_selector("#error:not([hidden])")
    assert "not an image" in page.locator("#error").inner_text() and page.locator("#start").is_visible()
    choose(page, PHOTO)
    finished(page)
    assert page.locator("#error").is_hidden()
    choose(page, PHOTO[: len(PHOTO) // 2])
    page.wait_for_selector("#error:not([hidden])")
    page.wait_for_selector("#busy", state="hidden")
    assert rows(page) and page.locator("#panel").evaluate("node => node.inert") is False
    page.click("#error-close")
    assert page.locator("#error").is_hidden()


def test_a_format_that_the_browser_does_not_show(page: Any, predictor: Predictor) -> None:
    image = photograph(size=(320, 213), kind="TIFF")
    choose(page, image, "scan.tif", "image/tiff")
    finished(page)
    assert rows(page)[0][0] == next(iter(predictor(image).areas))


def test_the_camera(page: Any) -> None:
    page.click("#camera")
    for _ in range(300):  # wait_for_function evaluates text, which the page's policy forbids
        if page.evaluate("document.getElementById('video').videoWidth"):
            break
        page.wait_for_timeout(100)
    page.click("#shutter")
    finished(page)
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_on_a_phone(phone: Any) -> None:
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.locator("#examples button").first.tap()
    finished(phone)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    phone.locator("#photo").tap()
    assert phone.locator("#tip").is_visible()
    small = phone.locator("button:visible, select:visible, #classes label").evaluate_all(
        "nodes => nodes.filter(n => n.getBoundingClientRect().height < 36).map(n => n.outerHTML)"
    )
    assert small == []
