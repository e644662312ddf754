"""The page in a real Chromium, over the built-in model: `pytest -m browser -n 0 tests/server/test_page.py`.

The browser is the system's: `$CHROMIUM`, or a chromium or Chrome on the PATH. With $SCREENSHOTS, a folder, each test
leaves a picture of its end there.
"""

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.sounds import wav
from invariants.family import Family
from parity import expected, media
from PIL import Image

from mlx_vlgen import GenerationResult, generate
from mlx_vlgen.server.models import Source

from .conftest import SHAPES
from .serving import Loaded, Running, running

api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser

api.expect.set_options(timeout=20_000)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BOXES = [{"bbox_2d": [100, 300, 400, 700], "label": "circle"}, {"bbox_2d": [650, 300, 900, 700], "label": "square"}]
LONG = {"type": "array", "items": {"const": "a"}, "minItems": 900}
COLORS = [(255, 90, 95), (76, 201, 240)]  # of the first two labels


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium: install one, or name it in $CHROMIUM")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens a page at a server's address. At its end nothing was complained of in the console, and no request went
    elsewhere. refused: a pattern of complaints that are meant."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def visit(server: Running, refused: str = "$^", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()

        def complain(text: str) -> None:
            if not re.search(refused, text):
                complaints.append(text)

        def watch(asked: Any) -> None:
            if not asked.url.startswith((f"{server.url}/", "blob:")):
                complaints.append(asked.url)

        page.on("console", lambda message: complain(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complain(str(error)))
        context.on("request", watch)
        page.set_default_timeout(20_000)
        page.goto(server.url)
        return page

    yield visit
    for context in contexts:
        if folder := os.environ.get("SCREENSHOTS"):
            context.pages[0].screenshot(path=Path(folder) / f"{request.node.name}-{len(contexts)}.png")
        context.close()
    assert not complaints


def transfer(page: Any, path: Path) -> Any:
    """A file as the browser hands it to a page, dropped or pasted."""
    script = """([data, name, type]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type}));
        return transfer;
    }"""
    kind = "audio/wav" if path.suffix == ".wav" else "image/png"
    return page.evaluate_handle(script, [base64.b64encode(path.read_bytes()).decode(), path.name, kind])


def let_go(page: Any, path: Path) -> None:
    file = transfer(page, path)
    for event in ("dragover", "drop"):
        page.dispatch_event("#composer", event, {"dataTransfer": file})


def drop(page: Any, path: Path) -> None:
    let_go(page, path)
    kind = "audio" if path.suffix == ".wav" else "img"
    api.expect(page.locator(f"#pictures {kind}")).to_have_count(1)


def settings(page: Any, **values: str) -> None:
    page.click("#open-settings")
    for name, value in values.items():
        page.check(f"#setting-{name}") if value == "on" else page.fill(f"#setting-{name}", value)
    page.click("#settings .strong")


def schema(page: Any, value: Any) -> None:
    page.click("#open-form")
    page.check("[name=kind][value=schema]")
    page.fill("#schema", json.dumps(value))
    page.click("#form .strong")


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def last_answer(page: Any) -> Any:
    """The last answer, once it is complete."""
    api.expect(page.locator("#send")).to_be_visible()
    answer = page.locator(".answer").last
    api.expect(answer).to_have_attribute("aria-busy", "false")
    return answer


def test_a_dropped_picture_is_answered_as_generate_does(
    visit: Callable[..., Any], served: Running, described: GenerationResult
) -> None:
    page = visit(served)
    drop(page, SHAPES)
    settings(page, temperature="0", max_tokens="24", enable_thinking="on", thinking_budget="6")
    ask(page, "Describe this image.")
    answer = last_answer(page)
    assert answer.locator(".text").inner_text() == described.answer.strip()
    assert not answer.locator(".thoughts").is_visible()
    answer.locator("summary").click()
    thoughts = re.sub(r"(?m)^\d+\. ", "", described.thinking or "")  # numbers of a list are its markers
    assert answer.locator(".thoughts").inner_text().split() == thoughts.split()
    figures = answer.locator(".figures").inner_text()
    assert re.fullmatch(r"\d+ tokens( · \d+\.\d tokens/s)? · first after \d+\.\d\d s · prompt of \d+.*", figures)


def test_stop_edit_ask_again_reload(visit: Callable[..., Any], served: Running, loaded: Loaded) -> None:
    page = visit(served)
    drop(page, SHAPES)
    page.wait_for_selector("#model option", state="attached")
    schema(page, LONG)
    ask(page, "Describe this image.")
    page.wait_for_selector(".answer .text code")
    page.keyboard.press("Escape")
    answer = last_answer(page)
    assert "Stopped." in answer.inner_text() and "≈" in answer.locator(".figures").inner_text()
    served.wait_until_idle()

    page.click("#open-form")
    page.check("[name=kind][value=text]")
    page.keyboard.press("Escape")
    settings(page, temperature="0", max_tokens="40")
    page.click("[aria-label='Edit and ask again']")
    assert page.input_value("#question") == "Describe this image."
    ask(page, "How many shapes are there?")
    messages = [{"role": "user", "content": "How many shapes are there?"}]
    expected = generate(*loaded, messages, image=SHAPES, max_tokens=40).text.strip()
    assert last_answer(page).locator(".text").inner_text() == expected
    assert page.locator(".question").count() == 1

    ask(page, "Hi")
    second = last_answer(page).locator(".text").inner_text()
    page.click("#new")
    ask(page, "Hello")
    last_answer(page)
    page.reload()
    names = page.locator("#conversations .name")
    assert names.all_inner_texts() == ["Hello", "Describe this image."]
    names.nth(1).click()
    api.expect(page.locator(".answer .text")).to_have_count(2)
    assert page.locator(".answer .text").all_inner_texts() == [expected, second]
    assert page.locator(".question img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    schema(page, LONG)
    settings(page, max_tokens="")
    ask(page, "Hi")
    page.locator(".answer").nth(2).locator(".text code").wait_for()
    page.reload()  # what had come of it is there
    assert "Stopped." in (text := last_answer(page).inner_text()) and '"a"' in text
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#conversations [aria-label='Delete Hello']")
    page.reload()
    assert names.all_inner_texts() == ["Describe this image."]


def test_boxes_are_drawn_and_saved(visit: Callable[..., Any], served: Running, tmp_path: Path) -> None:
    page = visit(served)
    drop(page, SHAPES)
    schema(page, {"type": "object", "properties": {"things": {"const": BOXES}}, "additionalProperties": False})
    ask(page, "Locate every object.")
    figure = last_answer(page).locator("figure.marked")
    figure.locator("canvas[data-drawn='2']").wait_for()
    assert figure.locator("figcaption").inner_text().startswith("2 boxes: circle, square")
    with page.expect_download() as saved:
        figure.get_by_text("Save picture").click()
    assert saved.value.suggested_filename == "shapes-marked.png"
    saved.value.save_as(tmp_path / "saved.png")
    picture, original = Image.open(tmp_path / "saved.png").convert("RGB"), Image.open(SHAPES)
    assert picture.size == original.size
    for box, color in zip(BOXES, COLORS, strict=True):
        left, top, right, bottom = (n / 1000 * picture.size[i % 2] for i, n in enumerate(box["bbox_2d"]))
        for x, y in ((left, (top + bottom) / 2), (right, (top + bottom) / 2), ((left + right) / 2, bottom)):
            assert picture.getpixel((round(x), round(y))) == color
    page.reload()
    page.locator("canvas[data-drawn='2']").wait_for()


def events(text: str) -> str:
    """An answer as the server would stream it."""
    pieces = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in re.findall(r"(?s).{1,7}", text)]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return "".join(f"data: {json.dumps(piece)}\n\n" for piece in [*pieces, end]) + "data: [DONE]\n\n"


def test_what_a_model_writes_is_never_html(visit: Callable[..., Any], served: Running) -> None:
    page = visit(served, refused="TrustedHTML")
    text = """# Head\n\nA **bold** `<b>` <img src="https://example.com/a.png" onerror="alert(1)"> [link](https://example.com)

1. one\n   - inner\n2. two\n\n| a | b |\n|---|---|\n| <i>1</i> | 2 |\n\n```html\n<script>alert(1)</script>\n```"""
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=events(text))
    )
    ask(page, "<img src=x onerror=alert(1)>")
    body = last_answer(page).locator(".text")
    tags = body.evaluate("node => [...node.querySelectorAll('*')].map((inner) => inner.localName)")
    assert not {"img", "a", "b", "i", "script"} & set(tags)
    assert {"h2", "strong", "code", "ol", "ul", "table", "pre"} <= set(tags)
    assert '<img src="https://example.com/a.png" onerror="alert(1)"> [link](https://example.com)' in body.inner_text()
    assert body.locator("pre").inner_text() == "<script>alert(1)</script>"
    assert page.locator(".question p").inner_text() == "<img src=x onerror=alert(1)>"
    with pytest.raises(api.Error, match="TrustedHTML"):  # the browser itself would refuse it
        page.evaluate("document.body.innerHTML = '<p>x</p>'")


def test_a_key_is_asked_for_and_errors_say_what_to_do(visit: Callable[..., Any], loaded: Loaded) -> None:
    with running({"demo": Source(lambda: loaded)}, api_key="right") as server:
        page = visit(server, refused="Failed to load resource")
        page.fill("#key-text", "wrong")
        page.press("#key-text", "Enter")
        api.expect(page.locator("#key-title")).to_contain_text("refuses")
        page.fill("#key-text", "right")
        page.press("#key-text", "Enter")
        api.expect(page.locator("#model option")).to_have_count(1)
        settings(page, max_tokens="40")
        page.reload()
        api.expect(page.locator("#model option")).to_have_count(1)
        assert page.evaluate("[localStorage['mlx_vlgen.key'], sessionStorage['mlx_vlgen.key']]") == [None, "right"]
        page.click("#open-settings")
        page.click("#forget-key")
        page.click("#settings .strong")
        ask(page, "Hi")
        page.fill("#key-text", "right")
        page.check("#key-keep")
        page.press("#key-text", "Enter")
        last_answer(page)
        assert page.evaluate("localStorage['mlx_vlgen.key']") == "right"

        settings(page, seed="1e30")
        drop(page, SHAPES)
        ask(page, "Hi")
        alert = last_answer(page).get_by_role("alert")
        assert "seed" in alert.inner_text() and "settings" in alert.inner_text()
        settings(page, seed="")
        alert.get_by_role("button", name="Try again").click()
        api.expect(alert).to_have_count(0)
        assert last_answer(page).locator(".text").inner_text()
        page.set_input_files("#files", [__file__])
        assert "is no picture" in page.locator("#trouble").inner_text()
    ask(page, "Hi")
    assert "The server does not answer." in last_answer(page).get_by_role("alert").inner_text()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "a sound with a long name, of a door that closes slowly.wav"
    path.write_bytes(wav(media.sound("sound").tobytes()))
    return path


@pytest.fixture(scope="module")
def hearing(load_family: Callable[[str], Family], loaded: Loaded) -> Iterator[Running]:
    """With a model that hears only, one that also sees, and the built-in one, which sees only."""
    families = {"ear": load_family("qwen2_audio"), "both": load_family("gemma4_audio")}
    pairs = {name: (family.model, family.processor) for name, family in families.items()} | {"demo": loaded}
    sources = {name: Source(lambda pair=pair: pair) for name, pair in pairs.items()}  # type: ignore[misc]
    with running(sources) as server:
        yield server


def test_a_sound_is_shown_and_heard(
    visit: Callable[..., Any], hearing: Running, load_family: Callable[[str], Family], sound: Path
) -> None:
    case = expected.case("qwen2_audio", "audio")
    page = visit(hearing, refused="status of 400")
    add = page.get_by_role("button", name="Add sounds", exact=True)
    api.expect(add).to_be_visible()
    assert not page.locator("#photograph").is_visible() and "image" not in page.locator("#files").get_attribute(
        "accept"
    )
    api.expect(page.get_by_role("heading", name="Let it hear something.")).to_be_visible()
    let_go(page, SHAPES)
    api.expect(page.locator("#trouble")).to_have_text(re.compile("shapes.png is no sound, and this model does not see"))
    drop(page, sound)
    assert page.locator("#pictures audio").get_attribute("aria-label") == sound.name
    assert page.locator("#status").inner_text() == f"Added: sound {sound.name}"
    page.keyboard.press("Shift+Tab")  # from the question
    api.expect(page.get_by_label(f"Remove {sound.name}")).to_be_focused()
    page.keyboard.press("Enter")
    api.expect(page.locator("#pictures audio")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        add.press("Enter")
    chooser.value.set_files(sound)
    settings(page, temperature="0", max_tokens=str(len(case.tokens)))
    ask(page, "Describe this.")
    said = load_family("qwen2_audio").processor.decode(case.tokens.tolist())
    assert last_answer(page).locator(".text").inner_text().split() == said.split()
    page.reload()
    player = page.locator(".question audio")
    ready = """player => player.readyState ? player.duration
        : new Promise((done) => (player.onloadedmetadata = () => done(player.duration)))"""
    assert abs(player.evaluate(ready) - 1.3) < 0.02
    assert page.locator(".question figcaption").inner_text() == sound.name

    page.select_option("#model", "demo")
    page.click("[aria-label='Edit and ask again']")
    page.press("#question", "Enter")  # nobody knows yet what it takes
    alert = last_answer(page).get_by_role("alert")
    assert "audio was given, and this model takes only text, pictures and videos" in alert.inner_text()
    page.click("[aria-label='Edit and ask again']")
    page.press("#question", "Enter")
    trouble = page.locator("#trouble")
    api.expect(trouble).to_have_text(
        re.compile("is a sound, and this model does not hear. Ask one that does, or leave")
    )
    assert page.locator(".question").count() == 1
    page.click(f"[aria-label='Remove {sound.name}']")
    let_go(page, sound)
    api.expect(trouble).to_have_text(re.compile("^a sound with .* this model does not hear"))
    assert page.locator("#pictures audio").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sound_and_a_picture_fit_a_phone(
    visit: Callable[..., Any], hearing: Running, sound: Path, scheme: str
) -> None:
    page = visit(hearing, viewport={"width": 360, "height": 640}, color_scheme=scheme, is_mobile=True, has_touch=True)
    page.select_option("#model", "both")
    settings(page, max_tokens="4")
    ask(page, "Hi")  # it is loaded
    last_answer(page)
    api.expect(page.get_by_role("button", name="Add pictures or sounds")).to_be_visible()
    page.click("#menu")
    page.click("#new")
    drop(page, SHAPES)
    drop(page, sound)
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"sound-{scheme}.png")
    ask(page, "Do they belong together?")
    assert last_answer(page).locator(".text").inner_text() and page.get_by_role("alert").count() == 0
    drop(page, sound)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#scroller").evaluate("node => node.scrollWidth - node.clientWidth") == 0
    assert page.locator("#composer").evaluate("node => node.scrollWidth - node.clientWidth") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_works_by_keyboard(visit: Callable[..., Any], served: Running, scheme: str) -> None:
    page = visit(served, viewport={"width": 360, "height": 640}, color_scheme=scheme, is_mobile=True, has_touch=True)
    drop(page, SHAPES)
    ask(page, "A very long word: " + "x" * 300)
    last_answer(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("#scroller").evaluate("node => node.scrollWidth - node.clientWidth") == 0
    page.focus("#menu")
    page.keyboard.press("Enter")
    api.expect(page.locator("#side")).to_be_visible()
    page.keyboard.press("Escape")
    api.expect(page.locator("#side")).to_be_hidden()
    for opener, dialog in (("#open-settings", "#settings"), ("#open-form", "#form")):
        page.focus(opener)
        page.keyboard.press("Enter")
        api.expect(page.locator(dialog)).to_be_visible()
        box = page.locator(dialog).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        page.keyboard.press("Escape")
        api.expect(page.locator(opener)).to_be_focused()


def test_photograph_and_paste(visit: Callable[..., Any], served: Running) -> None:
    page = visit(served)
    page.click("#photograph")
    ready = "video => video.videoWidth || new Promise((done) => (video.onloadeddata = done)).then(() => 1)"
    page.locator("#video").evaluate(ready)
    page.click("#snap")
    pictures = page.locator("#pictures img")
    api.expect(pictures).to_have_attribute("alt", "photograph.jpg")
    script = "(file) => dispatchEvent(new ClipboardEvent('paste', {clipboardData: file, cancelable: true}))"
    page.evaluate(script, transfer(page, SHAPES))
    api.expect(pictures).to_have_count(2)
    page.click("[aria-label='Remove photograph.jpg']")
    assert [picture.get_attribute("alt") for picture in pictures.all()] == ["shapes.png"]
