"""The page in a real browser, where there is one: quiet, alone, as wide as the window, usable."""

import pytest

from gft.report.page import page
from gft.report.runs import read_runs

from .browser import browser, installed
from .folders import evaluation, hostile_run, make_run, steps

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium here: apt-get install chromium")
WIDTHS = (320, 360, 768, 1440)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module", params=["one run", "two runs"])
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [hostile_run(folder / ("a" * 80))]
    if request.param == "two runs":
        runs.append(make_run(folder / "b", [evaluation(0, 0.2), *steps(60, kl=0.1), evaluation(60, 0.7)]))
    (folder / "r.html").write_text(page(read_runs(runs), 99), encoding="utf-8")
    return folder / "r.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_asks_for_nothing_complains_of_nothing_and_fits(path, tab, scheme):
    for width in WIDTHS:
        tab.open(path, width, scheme)
        tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
        assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.requests() == [path.resolve().as_uri()]
    assert tab.complaints() == []


def test_every_picture_has_words(path, tab):
    tab.open(path)
    pictures = "[...document.querySelectorAll('img, svg, canvas')]"
    silent = "e => !e.getAttribute('aria-label') && e.getAttribute('aria-hidden') !== 'true' && !e.alt"
    assert tab.value(f"{pictures}.length") > 8
    assert tab.value(f"{pictures}.filter({silent}).length") == 0


def test_scripts_of_answers_do_not_run(path, tab):
    tab.open(path)
    assert tab.value("document.scripts.length") == 0
    assert tab.value("document.querySelectorAll('img, iframe, object, link').length") == 0


CONTRAST = """(() => {
  const line = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const weights = [.2126, .7152, .0722];
  const light = c => weights.reduce((s, w, i) => s + w * line(c.match(/[0-9.]+/g)[i] / 255), 0);
  const paper = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c } };
  const names = 'h1, h2, h4, p, a:not(.skip), th, td, small, dt, dd, summary, .score, footer';
  return Math.min(...[...document.querySelectorAll(names)].map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(paper(e))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) }))
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out(path, tab, scheme):
    """4.5 is what WCAG asks of text of usual size."""
    tab.open(path, 1000, scheme)
    tab.value("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert tab.value(CONTRAST) >= 4.5


def test_keys_open_an_answer_and_choose_which_are_shown(path, tab):
    tab.open(path)
    tab.value("document.querySelector('.ask summary').focus()")
    tab.press("Enter", 13, "\r")
    assert tab.value("document.querySelector('.ask').open")
    shown = "[...document.querySelectorAll('.ask')].filter(e => e.offsetParent).length"
    every = tab.value(shown)
    tab.value("document.querySelector('#only-all').focus()")
    for _ in range(2):
        tab.press("ArrowRight", 39)  # some right, then none right
    assert tab.value("document.querySelector('#only-wrong').checked")
    assert every > 0
    assert tab.value(shown) == 0
