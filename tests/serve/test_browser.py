"""The page in a real browser: drop, watch, read, download, err."""

from __future__ import annotations

import json
import time

import onnx
import pytest

from tests.outcomes import EVIL
from tests.serve.chromium import asked_for, browser, chromium, resize
from tests.serve.running import ROOT, running
from tests.serve.test_server import small_model

TRAIN, DEPLOY = ROOT / "models" / "repvgg.train.onnx", ROOT / "models" / "repvgg.deploy.onnx"
# Drop a file on an element, as the window system does; `arguments`: the element, the name, the content.
DROP = """
const [zone, name, text] = arguments;
const data = new DataTransfer();
data.items.add(new File([text], name));
for (const type of ['dragover', 'drop']) {
  zone.dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: data}));
}
"""
pytestmark = browser


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder) as driver:
        driver.downloads = folder / "downloads"
        yield driver


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    with running(tmp_path_factory.mktemp("serve"), "--max-size", "1") as server:
        yield server


@pytest.fixture
def page(driver, lasting):
    """The page, fresh, of a server without jobs; afterwards nothing was said on the console."""
    for job in lasting.json("GET", "jobs")["jobs"]:
        lasting.json("DELETE", f"jobs/{job['id']}")
    driver.get("about:blank")
    resize(driver, 1280)
    driver.get_log("browser")
    asked_for(driver)
    driver.get(lasting.address)
    page = Page(driver, lasting)
    yield page
    assert [entry for entry in driver.get_log("browser") if entry["message"] not in page.expected] == []


class Page:
    def __init__(self, driver, server):
        self.driver, self.server, self.expected = driver, server, set()

    def __call__(self, selector):
        """The elements that a CSS selector finds."""
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        (element,) = self(selector)
        return element

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, self.one("body").text
            time.sleep(0.05)
        return value

    def choose(self, form, side, *paths):
        self.one(f"#{form} [data-side={side}] input").send_keys("\n".join(map(str, paths)))

    def submit(self, form):
        self.one(f"#{form} button[type=submit]").click()

    def expect(self, words):
        """Take what was said on the console with these words in it."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        self.expected |= {message for message in said if words in message}
        assert self.expected >= set(said)

    def ended(self, number=1):
        """The newest run, once so many have ended."""
        self.until(lambda: len(self(".run[data-ended]")) == number)
        return self("#runs > li")[0]

    def compare(self):
        self.driver.execute_script("document.querySelector('input[value=compare]').click()")

    def download(self, link, name):
        """The file that a link brings."""
        link.click()
        place = self.driver.downloads / name
        self.until(place.is_file)
        return place


def test_folds_shows_the_report_and_downloads(page):
    page.choose("fuse", "first", TRAIN)
    assert page.one("#fuse .chosen").text == TRAIN.name
    page.submit("fuse")
    run = page.ended()
    assert run.find_element("css selector", "h3").text == TRAIN.name
    badge = run.find_element("css selector", ".verdict")
    assert (badge.text, "good" in badge.get_attribute("class")) == ("passed", True)
    result, report, document = run.find_elements("css selector", ".links a")
    assert result.text.startswith("Download repvgg.train.fused.onnx (")
    place = page.download(result, "repvgg.train.fused.onnx")
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(place).graph.node}
    text = page.download(document, "repvgg.train.fuse.json").read_text(encoding="utf-8")
    assert json.loads(text)["verification"]["status"] == "passed"
    page.driver.switch_to.frame(page.one("iframe"))
    assert page.one("html").get_attribute("data-ready") == "yes"  # its script has run
    assert TRAIN.name in page.one("main").text
    assert page.driver.execute_script("return self.origin") == "null"
    page.driver.switch_to.default_content()
    report.click()
    page.until(lambda: len(page.driver.window_handles) == 2)
    page.driver.switch_to.window(page.driver.window_handles[1])
    page.until(lambda: page("html[data-ready=yes]"))
    page.driver.close()
    page.driver.switch_to.window(page.driver.window_handles[0])
    hosts = {address.split("/")[2] for address in asked_for(page.driver) if address.startswith("http")}
    assert hosts == {f"127.0.0.1:{page.server.port}"}


def test_a_dropped_model_is_taken(page):
    zone = page.one("#fuse .drop")
    page.driver.execute_script(DROP, zone, "dropped.onnx", "no model")
    assert page.one("#fuse .chosen").text == "dropped.onnx"
    page.submit("fuse")
    run = page.ended()
    assert run.find_element("css selector", ".verdict").text == "error"
    assert "not an ONNX model" in run.find_element("css selector", ".state").text
    assert page("iframe") == []
    page.driver.execute_script(DROP, page.one("h1"), "elsewhere.onnx", "")  # which a browser would open
    assert page.driver.current_url == page.server.address


def test_compares(page, tmp_path):
    page.compare()
    assert not page.one("#fuse").is_displayed()
    button = page.one("#compare button")
    page.choose("compare", "first", TRAIN)
    assert not button.is_enabled()
    page.choose("compare", "second", DEPLOY)
    page.driver.execute_script("document.querySelector('[name=layers]').click()")
    page.submit("compare")
    run = page.ended()
    assert run.find_element("css selector", "h3").text == f"{TRAIN.name} and {DEPLOY.name}"
    assert run.find_element("css selector", ".verdict").text == "passed"
    page.driver.switch_to.frame(page.one("iframe"))
    assert page("figure.depth svg") != []
    page.driver.switch_to.default_content()


def test_a_model_with_its_data(page, tmp_path):
    place = {"save_as_external_data": True, "location": "net.bin", "size_threshold": 0}
    onnx.save(small_model(16), tmp_path / "net.onnx", **place)
    page.choose("fuse", "first", tmp_path / "net.onnx", tmp_path / "net.bin")
    assert page.one("#fuse .chosen").text == "net.onnx, net.bin"
    page.submit("fuse")
    run = page.ended()
    links = [link.text for link in run.find_elements("css selector", ".links a")]
    assert [link.split(" (")[0] for link in links[:2]] == [
        "Download net.fused.onnx",
        "Download net.fused.onnx.data",
    ]
    page.choose("fuse", "first", tmp_path / "net.onnx")
    page.submit("fuse")
    assert "net.bin" in page.ended(2).find_element("css selector", ".state").text


def test_a_dropped_folder_brings_a_model_and_its_data(page, tmp_path):
    (tmp_path / "net" / "weights").mkdir(parents=True)
    place = {"save_as_external_data": True, "location": "weights/net.bin", "size_threshold": 0}
    onnx.save(small_model(16), tmp_path / "net" / "net.onnx", **place)
    box = page.one("#fuse .drop").rect
    files = {"items": [], "files": [str(tmp_path / "net")], "dragOperationsMask": 1}
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": files}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **where})
    page.until(lambda: page.one("#fuse .chosen").text)
    assert set(page.one("#fuse .chosen").text.split(", ")) == {"net.onnx", "net.bin"}
    page.submit("fuse")
    assert page.ended().find_element("css selector", ".verdict").text == "passed"


def test_errors_are_said(page, tmp_path):
    (tmp_path / "large.onnx").write_bytes(bytes(1_000_001))
    page.choose("fuse", "first", tmp_path / "large.onnx")
    page.submit("fuse")
    trouble = page.one("#trouble")
    page.until(lambda: "more than the server takes (1.00 MB)" in trouble.text)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"x")
    page.choose("fuse", "first", tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert trouble.text == ""
    page.submit("fuse")
    page.until(lambda: "exactly one is the model" in trouble.text)
    page.until(lambda: page.server.json("GET", "jobs")["jobs"] == [])  # and is not kept
    page.until(lambda: page("#runs > li") == [])
    page.expect("400 (Bad Request)")


def test_a_run_is_cancelled_and_removed(page):
    page.driver.execute_script("document.querySelector('[name=bench]').click()")
    for _ in range(2):
        page.choose("fuse", "first", TRAIN)
        page.submit("fuse")
    page.until(lambda: any("Waiting for 1 other run" in state.text for state in page(".state")))
    for left in (1, 0):
        page(".remove")[0].click()
        page.until(lambda left=left: len(page("#runs > li")) == left)
    assert page.server.json("GET", "jobs")["jobs"] == []
    page.until(lambda: page.server.left() == [])


def test_an_upload_is_cancelled(page, tmp_path):
    (tmp_path / "slow.onnx").write_bytes(bytes(900_000))
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 100_000}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    page.choose("fuse", "first", tmp_path / "slow.onnx")
    page.submit("fuse")
    page.until(lambda: any(state.text.startswith("Sending") for state in page(".state")))
    page.one(".remove").click()
    page.until(lambda: page("#runs > li") == [])
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    page.until(lambda: page.server.json("GET", "jobs")["jobs"] == page.server.left() == [])
    assert page.one("#trouble").text == ""


def test_a_server_that_is_gone_is_said(page, tmp_path):
    with running(tmp_path / "files") as other:
        page.driver.get(other.address)
        page.choose("fuse", "first", TRAIN)
    page.submit("fuse")
    page.until(lambda: "The server does not answer" in page.one("#trouble").text)
    page.expect("ERR_CONNECTION_REFUSED")


def test_the_page_comes_back_after_a_reload(page):
    page.choose("fuse", "first", TRAIN)
    page.submit("fuse")
    page.ended()
    page.driver.refresh()
    assert page.ended().find_element("css selector", ".verdict").text == "passed"


def test_the_keyboard_does_all(page):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(page.driver).send_keys(*keys).perform()

    def focused():
        return page.driver.switch_to.active_element

    press(Keys.TAB)
    assert focused().get_attribute("value") == "fuse"
    press(Keys.ARROW_RIGHT)
    assert page.one("#compare").is_displayed()
    press(Keys.ARROW_LEFT, Keys.TAB)
    assert focused().get_attribute("aria-label") == "Drop a model here"
    outline = "return getComputedStyle(document.querySelector('#fuse .drop')).outlineStyle"
    assert page.driver.execute_script(outline) == "solid"
    focused().send_keys(str(TRAIN))
    press(Keys.TAB, Keys.ENTER, Keys.TAB)
    assert focused().get_attribute("name") == "thorough"
    press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.ENTER)
    page.ended()
    press(Keys.TAB)
    assert focused().text.startswith("Download")


def test_names_are_harmless(page, tmp_path):
    name = EVIL.replace("/", "_").replace("<", "").replace(">", "") + "&amp;<b>.onnx"
    zone = page.one("#fuse .drop")
    page.driver.execute_script(DROP, zone, name, "no model")
    page.submit("fuse")
    page.until(lambda: "letters that not every system takes" in page.one("#trouble").text)
    name = "'\"&amp;&#60;b.onnx".replace('"', "")
    page.driver.execute_script(DROP, zone, name, "no model")
    page.submit("fuse")
    assert page.ended().find_element("css selector", "h3").text == name
    assert page.driver.title == "onnx-repfuse"
    page.expect("400 (Bad Request)")


def test_the_policy_lets_the_page_reach_this_server_only(page):
    """Even a script that got into the page could send nothing away."""
    result = page.driver.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        const seen = [];
        document.addEventListener('securitypolicyviolation', (event) => {
          seen.push(event.effectiveDirective);
          if (seen.length === 4) done(seen.sort());
        });
        fetch(arguments[0]).catch(() => {});
        new Image().src = arguments[0];
        const script = document.createElement('script');
        script.textContent = 'document.title = "owned"';
        document.body.append(script);
        const frame = document.createElement('iframe');
        frame.src = arguments[0];
        document.body.append(frame);
        setTimeout(() => done(seen), 5000);
        """,
        f"http://127.0.0.1:{page.server.port + 1}/",
    )
    assert result == ["connect-src", "frame-src", "img-src", "script-src-elem"]
    assert page.driver.title == "onnx-repfuse"
    page.expect("Security Policy")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_and_follows_light_or_dark(page, width, dark):
    resize(page.driver, width, dark=dark)
    page.driver.execute_script(DROP, page.one("#fuse .drop"), "a_long_name" * 10 + ".onnx", "no model")
    page.submit("fuse")
    page.ended()
    root = "document.documentElement"
    scrolled, shown = page.driver.execute_script(f"return [{root}.scrollWidth, {root}.clientWidth]")
    assert scrolled <= shown <= width
    color = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (color == "rgb(255, 255, 255)") != dark
