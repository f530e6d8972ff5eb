"""Pages: well-formed, escaped, loading nothing; charts: the same text for the same input; missing parts are named."""

from __future__ import annotations

import builtins
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from paring.cli import human
from paring.cli.blocks import Html, callout, figure, heading, page, paragraph, table, tiles
from paring.cli.index_page import write_index
from paring.cli.looks import colour_of, looks
from paring.cli.page import run_page
from paring.cli.plots import PlotError, bar_chart, line_chart, same_chart, scatter_chart

LAYERS = [
    {"name": "fc1", "kind": "Linear", "units": 30, "weight": (30, 64), "parameters": 1950, "nonzeros": 1950}
    | {"macs": 1920, "bytes": 7800, "adds": 1950},
    {"name": "fc<2>", "kind": "Linear", "units": 10, "weight": [10, 30], "parameters": 310, "nonzeros": 310}
    | {"macs": None, "bytes": 1240, "adds": None},
]
METRICS = [
    {"epoch": e, "loss": 2.0 / e, "validation_loss": 2.1 / e, "error": 50.0 / e, "units": {"fc1": 64 - e, "fc<2>": 10}}
    | {f"{ask}_{what}": 5000.0 / e for ask in ("expected", "support") for what in ("parameters", "macs")}
    for e in (1, 2, 3)
]
DENSE = {"error": 2.2, "parameters": 50_710, "macs": 50_200, "bytes": 203_000, "latency_ms": 0.06, "train_seconds": 8.0}
SMALL = {"error": 2.5, "parameters": 2260, "macs": 2220, "bytes": 9040, "latency_ms": 0.03, "train_seconds": 200.0}
DEMO = {"dense": DENSE, "small": SMALL, "dense_parameters": 50_710, "dense_macs": 50_200, "model": "mlp <script>"}
DEMO |= {"speed_latency_ms": {"ratio": 2.1, "low": 2.0, "high": 2.2, "by": "clock", "text": "2.10×"}}
DEMO |= {"max_abs_diff": 1e-6, "tolerance": 1e-5}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects the text, and fails on tags that do not nest or ids that repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids)), "ids must be unique in a page"
    return reader


def _loads_nothing(document: str) -> None:
    found = re.findall(r"""(?:src|href|data|action)\s*=\s*["'](?!#)[^"']*|@import|url\((?!#)[^)]*""", document)
    assert found == []
    assert not re.search(r"<(script|iframe|link|object|embed)\b", document)


def test_units_before_and_after_are_told() -> None:
    shown = run_page("t", {"widths": {"fc1": [300, 57], "fc2": [10, 10]}}, [], LAYERS)
    assert "<p>Units: fc1 300 → 57. 1 layers keep all of theirs.</p>" in shown
    assert "Every layer keeps all of its units." in run_page("t", {"widths": {"fc1": [3, 3]}}, [], LAYERS)
    assert "keep all" not in run_page("t", {}, [], LAYERS)


def test_the_loss_is_shown_without_the_penalty() -> None:
    apart = [{**row, "task_loss": row["loss"] - 0.25} for row in METRICS]
    shown, older = (run_page("t", {}, rows, LAYERS) for rows in (apart, METRICS))
    assert "without the method&#x27;s penalty" in shown
    assert "What the method adds to the loss" in shown
    assert "with penalty" not in shown
    assert "with penalty" in older
    assert "What the method adds" not in older
    assert "What the method adds" not in run_page("t", {}, [{**row, "task_loss": row["loss"]} for row in METRICS], [])


def test_the_index_lists_and_links_every_run(tmp_path: Path) -> None:
    for name, row in (("a b", SMALL | {"dense_parameters": 50_710}), ("<c>", DEMO), ("broken", None)):
        (tmp_path / name).mkdir()
        told = "{" if row is None else json.dumps({"model": "lenet_300_100", "data": "digits"} | row)
        (tmp_path / name / "result.json").write_text(told)
    (tmp_path / "a b" / "report.html").write_text("x")
    (tmp_path / "no run").mkdir()
    text = write_index(tmp_path).read_text()
    reader = _read(text)
    assert text.count("<a ") == 1
    assert '<a href="a%20b/report.html">a b</a>' in text
    assert "&lt;c&gt;" in text
    assert "broken (cannot be read)" in text
    assert "3 finished runs, newest first." in text
    assert "2,260" in "".join(reader.text)
    assert text.count("4.5 %") == 2
    assert "0 finished runs" in write_index(tmp_path / "no run").read_text()


@pytest.fixture(scope="module")
def demo() -> str:
    return run_page("Digits & <more>", DEMO, METRICS, LAYERS, [heading("Extra"), "plain <text>"])


def test_the_page_is_well_formed_and_loads_nothing(demo: str) -> None:
    reader = _read(demo)
    _loads_nothing(demo)
    assert reader.tags.count("svg") == 4
    assert reader.tags.count("h1") == 1
    assert "prefers-color-scheme:dark" in demo


def test_the_check_for_loading_finds_what_loads() -> None:
    for bad in ('<img src="http://a/b.png">', '<use href="other.svg#a">', "a{b:url(http://c)}", "<script>1</script>"):
        with pytest.raises(AssertionError):
            _loads_nothing(bad)


def test_what_comes_in_is_escaped(demo: str) -> None:
    assert "Digits &amp; &lt;more&gt;" in demo
    assert "mlp &lt;script&gt;" in demo
    assert "fc&lt;2&gt;" in demo
    assert "<p>plain &lt;text&gt;</p>" in demo
    assert "<2>" not in demo


def test_dense_and_small_stand_side_by_side(demo: str) -> None:
    cells = re.findall(r"<tr>(.*?)</tr>", demo)
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in cells]
    assert ["", "dense", "small", "change"] in rows
    assert ["parameters", "50,710", "2,260", "−96 %"] in rows
    assert ["test error", "2.20 %", "2.50 %", "+0.30 points"] in rows
    assert ["latency, batch 1", "0.06 ms", "0.03 ms", "−52 %"] in rows
    assert "2.10×" in demo

    assert ["training time", "8.0 s", "3 min 20 s", "+2,400 %"] in rows
    assert ["fc1", "Linear", "30", "30×64", "1,950", "1,950", "1,920", "7,800"] in rows
    assert ["total", "", "", "", "2,260", "2,260", "1,920", "9,040"] in rows


def test_times_that_are_too_noisy_give_no_ratio() -> None:
    noisy = {"ratio": None, "low": 0.4, "high": 3.0, "by": "clock", "text": "too noisy to say (0.40× to 3.00×)"}
    for speeds, shown in (({"speed_latency_ms": noisy}, True), ({"speed_latency_ms": None}, False)):
        document = run_page("Digits", DEMO | speeds, METRICS, LAYERS)
        assert ("too noisy to say" in document) == shown
        assert re.search(r"\d\.\d\d×", document) is None
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", document)]
        assert ["latency, batch 1", "0.06 ms", "0.03 ms", "too noisy to say" if shown else "–"] in cells


def test_the_proof_is_good_or_bad(demo: str) -> None:
    assert '"callout good"' in demo
    assert '"callout bad"' in run_page("t", DEMO | {"max_abs_diff": 1e-4}, [], LAYERS)


def test_what_a_run_said_stands_above_the_numbers() -> None:
    text = run_page("t", {**DEMO, "notes": ["training ended at step <5>", 3]}, METRICS, LAYERS)
    assert text.index("Notes") < text.index("training ended at step &lt;5&gt;") < text.index("Summary")
    for nothing in ([], None, "text", {"a": 1}):
        assert "Notes" not in run_page("t", {**DEMO, "notes": nothing}, METRICS, LAYERS)


def test_a_single_result_shows_what_is_known_of_the_dense_one() -> None:
    text = run_page("t", {**SMALL, "dense_parameters": 50_710}, [], LAYERS)
    assert '<td class="right">50,710</td>' in text
    assert "4.5 %" in text
    alone = run_page("t", SMALL, [], LAYERS)
    assert '<th class="right">dense</th><th class="right">small</th>' in alone  # what is not known is a dash


def test_missing_parts_are_named_in_their_place() -> None:
    text = " ".join(_read(run_page("empty", {}, [], [])).text)
    for what in ("No figure of the units", "No figure of the cost", "of the loss", "of the validation error"):
        assert what in text
    assert "No layer table" in text
    only = " ".join(_read(run_page("t", SMALL, [{"epoch": 1, "loss": 1.0}], LAYERS)).text)
    assert "set no validation examples aside" in only
    assert "No figure of the loss" not in only


def test_without_matplotlib_the_page_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    text = run_page("t", DEMO, METRICS, LAYERS)
    assert "pip install &#x27;paring[report]&#x27;" in text
    assert "<svg" not in text
    assert "50,710" in text


def test_a_deep_network_shows_ten_layers() -> None:
    metrics = [{"epoch": e, "units": {f"layer{i}": 50 - e for i in range(40)}} for e in (1, 2)]
    text = run_page("t", {}, metrics, [])
    assert "10 of 40 layers" in text
    assert ">layer0<" in text
    assert ">layer39<" in text
    assert len(set(re.findall(r">layer\d+<", text))) == 10


def test_blocks_refuse_what_they_cannot_show() -> None:
    with pytest.raises(ValueError, match="3 columns"):
        table(("a", "b", "c"), [("1", "2")])
    with pytest.raises(ValueError, match="SVG"):
        figure("<img>", "no")
    with pytest.raises(ValueError, match="level"):
        heading("x", 9)
    with pytest.raises(ValueError, match="callout"):
        callout("ugly", "x")  # type: ignore[arg-type]


def test_only_markup_made_by_blocks_is_taken_as_it_is() -> None:
    text = page("t", [paragraph("<i>"), "<b>", tiles([("<u>", "<s>", "<q>")]), Html("<hr>")])
    assert "<p>&lt;i&gt;</p>" in text
    assert "<p>&lt;b&gt;</p>" in text
    assert "<hr>" in text
    assert not set(_read(text).tags) & {"i", "u", "s", "q"}


CHARTS = {
    "line": lambda: line_chart({"_a & b": ([1, 2], [3.0, 4.0]), "$c$": ([1], [2.0])}, "x <", "y", "T", percent=True),
    "band": lambda: line_chart({"a": ([1, 2], [3, 4], [2, 3], [4, 5])}, "x", "y", 'a "T"', logy=True),
    "atoms": lambda: line_chart({"a": ([0.0, 1.0], [0.2, 0.3])}, "x", "y", "T", atoms=["a"]),
    "scatter": lambda: scatter_chart({"a": ([10, 1e6], [1.0, 2.0]), "b": ([100], [3.0])}, "x", "y", "T", logx=True),
    "bar": lambda: bar_chart({"a": 1.5, "b": (2.0, 1.5, 2.5)}, "x", "T", reference=1.0),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_deterministic_svg(name: str) -> None:
    svg = CHARTS[name]()
    assert svg == CHARTS[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox")
    assert "currentColor" in svg
    assert "#123456" not in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg)
    assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"sans-serif"}
    _loads_nothing(svg)


def test_names_stay_names_in_the_legend() -> None:
    text = "".join(ElementTree.fromstring(CHARTS["line"]()).itertext())
    assert "_a & b" in text
    assert "$c$" in text


def test_short_logarithmic_axes_are_labelled_in_plain_numbers() -> None:
    svg = line_chart({"a": ([0.5, 50.0], [1.5, 12.0])}, "x", "y", "T", logx=True, logy=True)
    told = [one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert told == ["1", "10", "x", "10", "2", "3", "4", "6", "y", "T"]


def test_the_readers_settings_do_not_change_a_chart() -> None:
    import matplotlib

    before = CHARTS["line"]()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        assert CHARTS["line"]() == before
        assert matplotlib.rcParams["font.size"] == 30


def test_same_chart_tells_data_from_drawing() -> None:
    old = line_chart({"a": ([1, 2], [3, 4])}, "x", "y", "T")
    redrawn = re.sub(r"matplotlib [\d.]+", "matplotlib 0.0.1", old).replace("0.8", "0.9")
    assert same_chart(old, old)
    assert same_chart(redrawn, old)
    assert not same_chart(old.replace("0.8", "0.9"), old), "edited by hand"
    assert not same_chart(line_chart({"a": ([1, 2], [3, 5])}, "x", "y", "T"), old)
    assert not same_chart("", old)


def test_charts_refuse_what_cannot_be_drawn() -> None:
    with pytest.raises(PlotError, match="at least one"):
        line_chart({}, "x", "y", "T")
    with pytest.raises(PlotError, match="'a' has parts of lengths"):
        line_chart({"a": ([1, 2], [1])}, "x", "y", "T")
    with pytest.raises(PlotError, match="lengths"):
        scatter_chart({"a": ([], [])}, "x", "y", "T")
    with pytest.raises(PlotError, match="no bars"):
        bar_chart({}, "x", "T")
    with pytest.raises(PlotError, match="outside its spread"):
        bar_chart({"a": (3.0, 1.0, 2.0)}, "x", "T")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (human.count(431_080), "431,080"),
        (human.count(1_600_000), "1.6 M"),
        (human.count(999_999.7), "1 M"),
        (human.count(None), "–"),
        (human.exact(2_293_000), "2,293,000"),
        (human.percent(0.971), "0.97 %"),
        (human.share(0.0409), "4.1 %"),
        (human.share(0.15), "15 %"),
        (human.share(0.9971), "99.7 %"),
        (human.share(1.0), "100 %"),
        (human.change(-0.851), "−85 %"),
        (human.change(0.001), "±0 %"),
        (human.size(512), "512 B"),
        (human.size(999_900), "1 MB"),
        (human.size(1_724_320), "1.72 MB"),
        (human.seconds(0.354), "0.35 s"),
        (human.seconds(59.97), "1 min 00 s"),
        (human.seconds(7500), "2 h 05 min"),
        (human.milliseconds(0.04567), "0.0457 ms"),
    ],
)
def test_numbers_are_written_as_people_read_them(text: str, wanted: str) -> None:
    assert text == wanted


def test_a_method_has_one_colour_in_every_chart() -> None:
    assert [look.colour for look in looks(["GMP, one threshold", "L0"])] == [colour_of("GMP"), colour_of("L0")]
    assert colour_of("GMP: 5 %") == colour_of("GMP") != colour_of("L0 0.1/N") == colour_of("L0")
    assert colour_of("fc1") is None
    assert colour_of("L0x") is None
    variants = looks(["L0", "L0, 16 epochs", "L0, concrete", "fc1", "fc2"])
    assert len({(look.colour, str(look.dash)) for look in variants}) == 5
    assert len({look.marker for look in variants}) == 5
    line, points = (chart({"IMP": ([1, 2], [3, 4])}, "x", "y", "T") for chart in (line_chart, scatter_chart))
    bars = bar_chart({"a bar": 1.0}, "x", "T", methods={"a bar": "IMP"})
    assert all(str(colour_of("IMP")) in svg for svg in (line, points, bars))


def test_a_chart_names_methods_in_words_and_marks_the_dense_network() -> None:
    svg = line_chart({"CS, weights kept": ([1, 2], [3, 4])}, "x", "y", "T", levels={"dense network": 2.0})
    told = [one.text for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "Continuous Sparsification, weights kept" in told
    assert "dense network" in told
    assert svg.count("stroke-dasharray") == 2, "the level, and the level in the legend"
