"""The page: every text harmless, every number in its place, whatever the run."""

import math
import re
from html.parser import HTMLParser

import pytest

from gft import cli
from gft.report.chart import chart, number, percent, ticks
from gft.report.lines import Line, Point
from gft.report.page import page
from gft.report.runs import read_runs
from gft.report.text import LONGEST, escaped, prompt_text, shown

from .folders import HOSTILE, answer, evaluation, hostile_run, make_evaluation, make_run, steps

ALLOWED = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "nav",
        "main",
        "section",
        "footer",
        "h1",
        "h2",
        "h3",
        "h4",
    ),
    *("a", "p", "ul", "li", "dl", "dt", "dd", "div", "span", "b", "br", "small", "bdi", "pre"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "g", "path", "circle", "text"),
    *("details", "summary", "fieldset", "legend", "label", "input"),
}


class Reader(HTMLParser):
    """The elements of a page: that they are closed, and what they are."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.attributes, self.texts = [], set(), [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes += attributes
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.names.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def page_of(*folders, prompts=99):
    text = page(read_runs(folders), prompts)
    text.encode()  # no half of a surrogate
    return text, Reader(text)


def test_page_lets_no_text_act(tmp_path):
    text, read = page_of(hostile_run(tmp_path / "<script>alert(2)<"))
    assert read.names <= ALLOWED
    assert not [name for name, _ in read.attributes if name.startswith("on") or name in ("src", "srcdoc")]
    links = [value for name, value in read.attributes if name in ("href", "action", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert not re.search("[\0\x01\x1b\x7f\x9f\u202a-\u202e\u2066-\u2069\u200f\u2028\ufeff]", text)
    seen = "".join(read.texts)
    for name in ("script", "attribute", "style", "template", "right to left", "entities"):
        assert HOSTILE[name] in seen
    for spelled in ("⟨U+202E⟩", "⟨U+0000⟩", "⟨U+D800⟩"):
        assert spelled in seen
    assert len(text) < 1_500_000
    assert "and 996,000 more characters" in seen


def test_page_forbids_scripts_and_the_network(tmp_path):
    text, _ = page_of(make_run(tmp_path / "a", steps(2)))
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'\"" in text
    assert not re.search(r"<script|@import|url\(|https?:", text)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 0}],
        steps(1),
        [{"step": 1, "loss": None, "nll": math.nan, "reward_self": "x"}],
        [evaluation(0, 0.5)],
        [{"step": 0, "eval_greedy": None, "eval_sampled": None, "eval_errors": 9}],
        [{"step": 3, "eval_greedy": 0.5, "eval_sampled": 0.25}],  # as releases without intervals wrote it
        steps(3, kl=1e300, grad_norm=-0.0, lr=5e-324),
        [*steps(2), {"step": 10**9, "loss": -1e9}],
        steps(500, kl=0.1),
    ],
)
def test_page_stands_any_run(rows, tmp_path):
    _, read = page_of(make_run(tmp_path / "a", rows), make_run(tmp_path / "b", steps(2)))
    coordinates = " ".join(value for name, value in read.attributes if name == "d")
    assert "nan" not in coordinates
    assert "inf" not in coordinates
    page_of(tmp_path / "a")


def test_page_says_how_far_a_run_is_and_what_could_not_be_read(tmp_path):
    text, _ = page_of(make_run(tmp_path / "a", steps(4), tail=b'{"st'))
    assert "4 of 9 updates" in text
    assert "1 lines of metrics.jsonl could not be read" in text


def test_page_of_one_run_has_its_numbers(tmp_path):
    answers = [answer(0, 1.0), answer(0, 0.0, sample=1), answer(1, None)]
    run = make_run(tmp_path / "a", [evaluation(0, 0.2), *steps(2), evaluation(2, 0.7)], {2: answers})
    _, read = page_of(run)
    seen = " ".join(read.texts)
    for words in ("70.0%", "95%: 60.0% to 80.0%", "before training 20.0%", "pass@2", "1 of 2 right", "✓ 1", "✗ 0"):
        assert words in seen
    assert "! no reward: the checker failed" in seen
    labels = [value for name, value in read.attributes if name == "aria-label"]
    assert "Greedy: greedy from 20.0% to 70.0%" in labels


def test_page_compares_runs_prompt_by_prompt(tmp_path):
    folders = []
    for name, rewards in (("a", [0, 0, 1, 0]), ("b", [1, 1, 1, 0])):
        answers = [answer(p, float(r)) for p, r in enumerate(rewards)]
        rows = [*steps(2), evaluation(2, sum(rewards) / 4)]
        folders.append(make_run(tmp_path / name, rows, {2: answers}))
    _, read = page_of(*folders)
    seen = " ".join(read.texts)
    assert "Less a, on the same prompts" in seen
    assert "+50.0 points" in seen
    assert "+0.0 to +100.0" in seen
    _, read = page_of(folders[0], make_evaluation(tmp_path / "e", [answer(p, 1.0) for p in (0, 1)]))
    assert "+100.0 points *" in " ".join(read.texts)


def test_page_shows_as_many_prompts_as_asked(tmp_path):
    run = make_run(tmp_path / "a", [evaluation(0, 0.5)], {0: [answer(p, 1.0) for p in range(5)]})
    assert page_of(run, prompts=3)[0].count('<details class="ask') == 3
    assert 'id="samples"' not in page_of(run, prompts=0)[0]


def test_page_ignores_answers_that_no_evaluation_of_the_run_names(tmp_path):
    run = make_run(tmp_path / "a", steps(3), {7: [answer(0, 1.0)]})  # of a run that this one replaced
    assert 'id="samples"' not in page_of(run)[0]


def test_text_is_the_same_text_and_its_beginning_where_it_is_long():
    assert escaped("a <b> & 'c'\n\té → 字") == "a &lt;b&gt; &amp; &#x27;c&#x27;\n\té → 字"
    assert shown("x" * LONGEST) == "x" * LONGEST
    assert shown("x" * (LONGEST + 1)).startswith("x" * LONGEST + '<span class="more">')
    assert prompt_text([{"role": "user", "content": "hi"}, {"role": "assistant"}]) == "user: hi\n\nassistant: "
    assert prompt_text({"odd": 1}) == '{"odd": 1}'


def test_ticks_are_round_and_within():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0, 150) == [0, 50, 100, 150]
    assert ticks(3, 3) == [3]
    for low, high in ((-7e-9, 3e-9), (1e9, 1.1e9), (0.1234, 0.1235)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6
        assert all(low - 1e-12 <= value <= high * (1 + 1e-9) for value in found)


def test_numbers_are_short():
    assert [number(x) for x in (0.123456, 12345.0, 2.5e6, 1e-5, 0, -3)] == [
        "0.123",
        "12.3k",
        "2.5M",
        "1e-05",
        "0",
        "-3",
    ]
    assert [percent(x) for x in (0.5, 0.0, 1.0, 0.0625)] == ["50.0%", "0.0%", "100.0%", "6.2%"]


def test_chart_breaks_its_line_at_a_gap_and_draws_lone_points():
    line = Line("a", 0, 0, 0, [Point(1, 1.0), Point(2, None), Point(3, 2.0), Point(4, 3.0)])
    (path,) = re.findall(r'class="bold" d="([^"]+)"', chart([line], "t"))
    assert re.sub(r"[\d. ]+", "", path) == "MhMhL"


def test_report_writes_a_page_and_pictures_and_replaces_no_other_file(tmp_path, capsys):
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 46)]
    run = make_run(tmp_path / "$a_", [evaluation(0, 0.2), *rows, evaluation(45, 0.7)])
    out = tmp_path / "new" / "r.html"
    for more in ([], ["--no-png"]):
        cli.main(["report", str(run), "--out", str(out), *more])
    assert f"report: {out}" in capsys.readouterr().out
    pictures = sorted(path.name for path in (tmp_path / "new" / "r").iterdir())
    assert pictures == ["greedy.png", "loss.png", "mean-reward-of-the-samples.png", "pass-k.png"]
    out.write_text("my page")
    with pytest.raises(SystemExit, match=r"exists and is no report: give another name"):
        cli.main(["report", str(run), "--out", str(out)])
    assert out.read_text() == "my page"
    with pytest.raises(SystemExit, match="name the runs"):
        cli.main(["report"])
    with pytest.raises(SystemExit, match=r"give a name that ends in \.html"):
        cli.main(["report", str(run), "--out", str(tmp_path / "model.safetensors")])
