"""The HTML report in a real browser: it renders, filters, stays fast, and no name can do harm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from onnx_repfuse.records.comparison import Comparison
from onnx_repfuse.records.outcome import Outcome
from onnx_repfuse.records.report import NodeRef
from onnx_repfuse.records.verdict import Status
from onnx_repfuse.report.block_layout import MAX_NODES, draw
from onnx_repfuse.report.html import render
from tests.outcomes import EVIL, compared, comparison, fold, outcome

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def browse(folder, page, script="", width=1200, flags=()):
    """The page's DOM after `script`, and what the console said. The script needs a laxer policy than ours."""
    if script:
        page = re.sub(r"script-src &#x27;[^&]*&#x27;", "script-src &#x27;unsafe-inline&#x27;", page)
        page = page.replace("</body>", f"<script>window.onload = () => {{ {script} }};</script></body>")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--disable-gpu", "--no-sandbox", "--disable-extensions", "--no-first-run",
         "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
         "--allow-file-access-from-files", *flags,
         "--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def text_of(dom, element="title"):
    return re.search(f"<{element}>(.*?)</{element}>", dom, re.DOTALL).group(1)


@browser
def test_renders_under_its_own_policy_without_a_console_message(tmp_path):
    dom, console = browse(tmp_path, render([outcome()], "1.0"))
    assert console == []
    assert 'data-ready="yes"' in dom
    assert dom.count("<svg") == 5  # two maps, the scale, and the first fold before and after
    assert 'class="norm"' in dom
    assert "3x3, 64-&gt;64" in dom


@browser
def test_evil_names_are_harmless(tmp_path):
    dom, console = browse(tmp_path, render([outcome(evil=EVIL)], EVIL))
    assert console == []
    assert "owned" not in text_of(dom).replace("document.title='owned'", "")
    assert "<img" not in dom
    assert dom.count("<script") == 2
    assert 'data-ready="yes"' in dom


@browser
def test_filters_and_draws_what_is_opened(tmp_path):
    script = """
      const filter = document.querySelector('[data-list="refusals-0"]');
      const items = [...document.querySelectorAll('#refusals-0 li li')];
      const shown = () => items.filter((li) => !li.closest('[hidden]')).length;
      const seen = [shown()];
      const [input, select] = [filter.querySelector('input'), filter.querySelector('select')];
      const type = (text) => { input.value = text; input.dispatchEvent(new Event('input')); seen.push(shown()); };
      type('BN3'); type('bn3 nothing'); type('');
      select.value = 'cost'; select.dispatchEvent(new Event('change')); seen.push(shown());
      seen.push(filter.querySelector('output').textContent);
      const folds = document.querySelectorAll('details.fold');
      seen.push(folds[2].querySelectorAll('svg').length);
      folds[2].addEventListener('toggle', () => setTimeout(() => {
        seen.push(folds[2].querySelectorAll('svg').length); document.title = JSON.stringify(seen); }));
      folds[2].open = true;
    """
    dom, console = browse(tmp_path, render([outcome()], "1.0"), script)
    assert console == []
    assert text_of(dom) == '[6,1,0,6,1,"1 of 6",0,2]'


@browser
@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(tmp_path, width):
    """In a frame, because headless Chromium's windows are at least 500 wide."""
    long = "/stages/0/blocks/a_very_long_name_without_any_space_" * 4
    (tmp_path / "inner.html").write_text(render([outcome(evil=long), outcome()], "1.0"), encoding="utf-8")
    size = f"width:{width}px;height:900px;border:0"
    frame = f'<html><body><iframe src="inner.html" style="{size}"></iframe></body></html>'
    script = """
      const page = frames[0].document.documentElement;
      const text = frames[0].document.querySelector('.tiles').offsetWidth;
      document.title = JSON.stringify([page.scrollWidth, page.clientWidth, text]);
    """
    dom, _ = browse(tmp_path, f"<title></title>{frame}", script, 1300)
    page, window, tiles = map(int, re.findall(r"\d+", text_of(dom)))
    assert page <= window <= width
    assert tiles > 0.8 * window


@browser
@pytest.mark.parametrize("dark", [False, True])
def test_follows_the_readers_light_or_dark(tmp_path, dark):
    script = r"""
      const style = getComputedStyle(document.body);
      const light = (color) => color.match(/\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3;
      const finish = () => {
        const box = document.querySelector('rect.conv');  // drawn when its fold has opened
        if (!box) { setTimeout(finish, 20); return; }
        const colors = [style.backgroundColor, style.color, getComputedStyle(box).fill];
        document.title = JSON.stringify(colors.map(light).map(Math.round));
      };
      finish();
    """
    flags = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    dom, _ = browse(tmp_path, render([outcome()], "1.0"), script, flags=flags)
    page, text, box = map(int, re.findall(r"\d+", text_of(dom)))
    assert (page < text) == dark
    assert abs(page - text) > 150
    assert abs(box - text) > 90


@browser
def test_500_folds_are_listed_and_few_drawn(tmp_path):
    script = "document.title = document.querySelectorAll('*').length"
    page = render([outcome(folds=500)], "1.0")
    assert len(page) < 1_500_000
    dom, console = browse(tmp_path, page, script)
    assert console == []
    assert dom.count("<svg") == 5
    assert dom.count('class="fold"') == 500
    assert int(text_of(dom)) < 30_000


@browser
def test_a_click_on_the_map_opens_the_fold_among_those_that_are_alike(tmp_path):
    script = """
      const fold = document.getElementById('fold-0-30');
      const [before, after] = document.querySelectorAll('.map a[href="#fold-0-30"]');
      const seen = [fold.checkVisibility(), fold.open];
      before.dispatchEvent(new PointerEvent('pointerenter'));
      seen.push(after.classList.contains('hot'));
      fold.addEventListener('toggle', () => setTimeout(() => {
        seen.push(fold.checkVisibility(), fold.open, fold.querySelectorAll('svg').length);
        document.title = seen.join(); }));
      after.dispatchEvent(new MouseEvent('click', { bubbles: true, cancelable: true }));
    """
    dom, console = browse(tmp_path, render([outcome(folds=40)], "1.0"), script)
    assert console == []
    assert text_of(dom) == "false,false,true,true,true,2"


@browser
def test_nothing_is_blank_when_it_is_printed(tmp_path):
    script = """
      const hidden = () => [...document.querySelectorAll('ul.list li')].filter((li) => !li.checkVisibility(
        { contentVisibilityAuto: true })).length;
      const seen = [hidden() > 0];
      dispatchEvent(new Event('beforeprint'));
      seen.push(hidden());
      dispatchEvent(new Event('afterprint'));
      seen.push(hidden() > 0);
      document.title = seen.join();
    """
    dom, _ = browse(tmp_path, render([outcome(folds=40)], "1.0"), script)
    assert text_of(dom) == "true,0,true"


@browser
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_bars_use_the_width_and_keep_their_numbers(tmp_path, width):
    """In a frame, because headless Chromium's windows are at least 500 wide."""
    (tmp_path / "inner.html").write_text(render([outcome()], "1.0"), encoding="utf-8")
    frame = f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe>'
    script = """
      const page = frames[0].document;
      const wide = page.querySelector('main').clientWidth;
      const share = (name) => page.querySelector(name).getBoundingClientRect().width / wide;
      const all = [...page.querySelectorAll('.ms, .sizes td, .saved > span')];
      const numbers = all.filter((one) => one.checkVisibility());
      const inside = numbers.every((one) => one.scrollWidth <= one.clientWidth + 1 &&
        one.getBoundingClientRect().right <= page.documentElement.clientWidth);
      document.title = [inside, share('.bars .bar') > 0.6, share('.sizes .bar') > 0.45, share('.maps') > 0.99].join();
    """
    dom, _ = browse(tmp_path, f"<title></title><html><body>{frame}</body></html>", script, 2000)
    assert text_of(dom) == "true,true,true,true"


@pytest.mark.parametrize(("status", "mark"), [(Status.PASSED, "&check;"), (Status.NOT_OBSERVED, "?"),
                                              (Status.FAILED, "&times;")])  # fmt: skip
def test_the_verdict_is_one_of_three_and_needs_no_color(status, mark):
    page = render([outcome(status=status)], "1.0")
    assert f"<b>{mark}</b></span><div><strong>{str(status).capitalize()}</strong>" in page


def test_folds_that_are_alike_are_one_card_and_refusals_one_per_reason():
    page = render([outcome(folds=36)], "1.0")
    assert page.count('<details class="group">') == 1
    assert '<b class="times">36 &times;</b> 3 Conv + 3 BatchNormalization + Sum &rarr; Conv' in page
    assert "&minus;7.20 k MACs, &minus;216 nodes" in page
    assert '<b class="times">5 &times;</b> ' in page
    assert "2 more" in page


def test_300_folds_are_less_than_a_megabyte():
    long = "/stages/stages.0/blocks/blocks.0/token_mixer/"
    assert len(render([outcome(folds=300, evil=long)], "1.0")) < 1_000_000


def test_the_environment_is_told():
    page = render([outcome()], "1.0")
    for words in ("2026-01-02 03:04:05 UTC", "A processor, 4 cores, Linux x86_64", "onnxruntime 1.20.0", "opset = 17",
                  "0, 1, 2", "x:1,3,32,32", f"5.00 MB, SHA-256 <code>{'0f' * 32}</code>"):  # fmt: skip
        assert words in page


def test_stands_alone_and_is_well_formed():
    page = render([outcome(evil="<b>"), replace(outcome(), exit_code=4)], "1.0")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", page)
    assert "@import" not in page
    assert "url(" not in page
    open_tags: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "input", "line", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            if tag != "line":
                assert open_tags.pop() == tag

    Check().feed(page)
    assert open_tags == []
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_every_state_renders():
    base = outcome()
    states = [
        Outcome("fuse", "net.onnx", exit_code=1, error="cannot be read"),
        Outcome("compare", "a.onnx", "b.onnx", 3, "they differ", comparison=Comparison(base.verification)),
        replace(base, command="plan", output="", report=replace(base.report, verification=None)),
        outcome(0, status=Status.FAILED, error=float("inf")),
        outcome(0, status=Status.NOT_OBSERVED, error=float("nan")),
    ]
    page = render(states, "1.0")
    assert page.count("<section") == 5
    assert "cannot be read" in page
    assert "nothing written" in page


def test_boxes_do_not_overlap_and_edges_run_down():
    made = fold(0, 5)
    picture = draw([*made.absorbed, NodeRef("late", "Add", ("x0", made.output), ("z",))], made.sources, "z")
    boxes = [box[:4] for box in picture.boxes]
    for index, (x, y, w, h) in enumerate(boxes):
        assert x >= 0
        assert y >= 0
        assert x + w <= picture.width
        assert y + h <= picture.height
        for x2, y2, w2, h2 in boxes[:index]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    for edge in picture.edges:
        start, end = re.match(r"M\S+ (\S+?)C.* (\S+?)(?:V.*)?$", edge).groups()
        assert float(start) < float(end)


def test_nodes_in_any_order_are_connected():
    """Those that a fold creates come in the order in which it made them."""
    first, last = NodeRef("first", "Add", ("x",), ("t",)), NodeRef("last", "ReduceMean", ("t",), ("y",))
    assert draw([last, first], ("x",), "y") == draw([first, last], ("x",), "y")


def test_blocks_without_nodes_and_with_too_many():
    assert draw([NodeRef("n", "Conv", ("x",), ("y",))] * (MAX_NODES + 1), ("x",), "y") is None
    assert len(draw([], ("x",), "y").boxes) == 2
    assert draw([], ("x",), "y").edges != []
    assert len(draw([], (), "y").boxes) == 1
    looped = draw([NodeRef("n", "Add", ("x",), ("x",))], ("x",), "y")  # `0 + x`, renamed away
    assert (len(looped.boxes), len(looped.edges)) == (3, 2)
    assert draw([NodeRef("n", "Split", ("x", "x"), ("a", "b"))], ("x",), "b") is not None


@browser
@pytest.mark.parametrize("width", [500, 1280])
def test_the_error_along_the_depth_is_a_line_that_keeps_to_the_page(tmp_path, width):
    script = """
      const plot = document.querySelector('.depth .plot').getBoundingClientRect();
      const dot = document.querySelector('.depth .dot').getBoundingClientRect();
      const points = document.querySelector('polyline.error').getAttribute('points').split(' ').length;
      document.title = [document.documentElement.scrollWidth <= innerWidth, plot.height > 200, points,
        Math.abs((dot.left + dot.width / 2 - plot.left) / plot.width - 20 / 39) < 0.01].join();
    """
    dom, console = browse(tmp_path, render([compared(EVIL, layers=40)], "1.0"), script, width)
    assert console == []
    assert text_of(dom) == "true,true,40,true"
    assert "The first that diverges" in dom


def test_a_comparison_says_all_that_differs():
    page = render([compared()], "1.0")
    assert re.search(r"<h2>[^<]+ and [^<]+</h2>", page)
    for words in (
        "The first model computes in float32, the second in float16: judged by the noise of the second (float16).",
        "input &#x27;x&#x27; tensor(float) [N, 3, ?] in the first model, &#x27;x&#x27; tensor(float16)",
        "output &#x27;x&#x27; tensor(float) [N, 3, ?] is in the second model only",
        "20 of 30 elements differ, 1 of them NaN or infinite in one model only",
        "PSNR 60.5 dB, top-1 agrees 100.0%, top-5 agrees 80.0%",
    ):
        assert words in page
    assert "Error along the depth" not in render([compared(layers=0)], "1.0")
    again = comparison(layers=4).layers
    again = replace(again, tensors=(replace(again.tensors[0], status="agrees again"), *again.tensors[1:]))
    page = render([replace(compared(), comparison=replace(comparison(), layers=again))], "1.0")
    assert "1 tensor differs, but what follows agrees again." in page
    silent = replace(comparison(layers=4), layers=replace(comparison(layers=4).layers, tensors=()))
    assert "no tensor in common" in render([replace(compared(), comparison=silent)], "1.0")
