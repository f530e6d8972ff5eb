"""Charts as SVG text: few lines, large type, colours that colour-blind readers tell apart, light and dark pages alike.

The same input gives the same text: the ids come from a hash of the input, no date is written, and the user's matplotlib
settings are left out. Nothing is loaded from anywhere; text stays text, in the reader's sans-serif. The ink follows the
reader's light or dark mode. The first line of the SVG stamps the input and the version of matplotlib, so that
`same_chart` can tell changed data from another matplotlib. Needs the extra `report`.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from paring.cli.human import short
from paring.cli.looks import INK, PALETTE, colour_of, looks

Numbers = Sequence[float]
Points = tuple[Numbers, Numbers]
Band = tuple[Numbers, Numbers, Numbers, Numbers]

_MARKS = 12  # a line of more points than that has a mark at every so many only
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 14,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_STYLE = ".paring-chart{color:#3b4450}@media(prefers-color-scheme:dark){.paring-chart{color:#b9c3ce}}"


class PlotError(ValueError):
    """What was asked cannot be drawn; the message says why."""


def line_chart(
    series: Mapping[str, Points | Band],
    xlabel: str,
    ylabel: str,
    title: str,
    logx: bool = False,
    logy: bool = False,
    percent: bool = False,
    atoms: Collection[str] = (),
    levels: Mapping[str, float] | None = None,
) -> str:
    """One line per series with its marks, and a band around it where the series has one.

    Args:
        series: name → (xs, ys), or (xs, ys, low, high) for a band.
        xlabel, ylabel, title: text, units included.
        logx, logy: logarithmic axes.
        percent: ys are fractions, shown as percent.
        atoms: names of series that are no line but separate points, drawn on stems.
        levels: name → y of lines to compare with, across the whole chart: the dense network's error.

    Raises:
        ImportError: matplotlib is not there.
        PlotError: nothing to draw, or lengths that differ.
    """
    _check(series, (2, 4))

    def draw(axes: Any) -> None:
        for (name, values), look in zip(series.items(), looks(series), strict=True):
            style = {"color": look.colour, "linewidth": 2.2, "marker": look.marker, "label": _label(look.name)}
            if name in atoms:
                axes.vlines(values[0], 0, values[1], color=look.colour, linewidth=1.6)
                axes.plot(values[0], values[1], markersize=9, **(style | {"linewidth": 0}))
                continue
            every = max(1, len(values[0]) // _MARKS)
            axes.plot(values[0], values[1], linestyle=look.dash, markersize=6.5, markevery=every, **style)
            if len(values) == 4:
                axes.fill_between(values[0], values[2], values[3], color=look.colour, alpha=0.15, linewidth=0)
        for index, (name, level) in enumerate((levels or {}).items()):
            dash = (0, (6, 3)) if index == 0 else (0, (2, 2))
            axes.axhline(level, color=INK, linewidth=1.8, linestyle=dash, label=_label(name), zorder=1.5)

    extra = [sorted(atoms), list((levels or {}).items())]
    return _chart("line", draw, series, xlabel, ylabel, title, logx, logy, percent, extra, tuple(levels or ()))


def scatter_chart(
    series: Mapping[str, Points],
    xlabel: str,
    ylabel: str,
    title: str,
    logx: bool = False,
    logy: bool = False,
    percent: bool = False,
) -> str:
    """One kind of mark per series of points (xs, ys); arguments and errors as in `line_chart`."""
    _check(series, (2,))

    def draw(axes: Any) -> None:
        for (xs, ys), look in zip(series.values(), looks(series), strict=True):
            style = {"color": look.colour, "marker": look.marker, "label": _label(look.name)}
            axes.scatter(xs, ys, s=70, alpha=0.9, linewidths=0, **style)

    return _chart("scatter", draw, series, xlabel, ylabel, title, logx, logy, percent)


def bar_chart(
    bars: Mapping[str, float | tuple[float, float, float]],
    xlabel: str,
    title: str,
    percent: bool = False,
    reference: float | None = None,
    methods: Mapping[str, str] | None = None,
) -> str:
    """Horizontal bars from top to bottom, each a value or (value, low, high).

    Args:
        bars: name → value, or value with the ends of its spread.
        xlabel, title: text, units included.
        percent: values are fractions, shown as percent.
        reference: a value to mark by a line, e.g. 1 for "as fast as before".
        methods: name of a bar → the method whose colour it has; bars of no method have the first one.

    Raises:
        ImportError: matplotlib is not there.
        PlotError: nothing to draw, or a spread that does not hold its value.
    """
    if not bars:
        raise PlotError(f"the chart {title!r} has no bars")
    rows = {name: (value if isinstance(value, tuple) else (value, value, value)) for name, value in bars.items()}
    for name, (value, low, high) in rows.items():
        if not low <= value <= high:
            raise PlotError(f"the bar {name!r} of {title!r} has the value {value} outside its spread {low} to {high}")

    def draw(axes: Any) -> None:
        for place, (name, (value, low, high)) in enumerate(rows.items()):
            colour = colour_of((methods or {}).get(name, "")) or PALETTE[0]
            axes.barh(place, value, height=0.6, color=colour, alpha=0.85)
            if high > low:
                axes.errorbar(value, place, xerr=[[value - low], [high - value]], color=INK, capsize=4, linewidth=1.6)
        axes.set_yticks(range(len(rows)), [_drawable(name) for name in rows])
        axes.invert_yaxis()
        if reference is not None:
            axes.axvline(reference, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))

    extra = [reference, sorted((methods or {}).items())]
    return _chart("bar", draw, rows, xlabel, "", title, percent=percent, extra=extra)


def same_chart(old: str, new: str) -> bool:
    """Whether two charts show the same: equal texts, or equal inputs drawn by different versions of matplotlib."""
    if old == new:
        return True
    a, b = _STAMP.match(old), _STAMP.match(new)
    return a is not None and b is not None and a["inputs"] == b["inputs"] and a["version"] != b["version"]


_STAMP = re.compile(r"<svg [^>]*>\n<!-- chart (?P<inputs>\w+), matplotlib (?P<version>\S+) -->")


def _check(series: Mapping[str, Sequence[Numbers]], parts: tuple[int, ...]) -> None:
    if not series:
        raise PlotError("a chart needs at least one series")
    for name, values in series.items():
        lengths = [len(part) for part in values]
        if len(values) not in parts or not lengths[0] or len(set(lengths)) > 1:
            wanted = " or ".join(str(part) for part in parts)
            raise PlotError(f"series {name!r} has parts of lengths {lengths}; give {wanted} of one length, not empty")


def _chart(
    kind: str,
    draw: Callable[[Any], None],
    data: Mapping[str, Any],
    xlabel: str,
    ylabel: str,
    title: str,
    logx: bool = False,
    logy: bool = False,
    percent: bool = False,
    extra: object = None,
    levels: Sequence[str] = (),
) -> str:
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator
    except ImportError as error:
        raise ImportError("charts need matplotlib; run: pip install 'paring[report]'") from error

    class Minor(LogFormatter):
        """The minor ticks of a short logarithmic axis as text like the major ones; which of them, matplotlib decides."""

        def __init__(self, text_of: Callable[[float], str]) -> None:
            super().__init__()
            self.text_of = text_of

        def __call__(self, x: float, pos: int | None = None) -> str:
            return self.text_of(x) if super().__call__(x, pos) else ""

    xlabel, ylabel, title = map(_drawable, (xlabel, ylabel, title))
    told = json.dumps([kind, list(data.items()), xlabel, ylabel, title, logx, logy, percent, extra], default=list)
    inputs = hashlib.sha256(told.encode()).hexdigest()[:12]
    whole = kind == "line" and all(float(x).is_integer() for xs, *_ in data.values() for x in xs)
    names = [*(look.name for look in looks(data)), *levels]
    columns = max(1, min(len(names), 60 // (max(map(len, names)) + 6)))
    legend = -(-len(names) // columns) if kind != "bar" and len(names) > 1 else 0
    height = 1.3 + 0.5 * len(data) if kind == "bar" else 3.8 + 0.25 * legend
    text = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_SETTINGS, "svg.hashsalt": inputs})
        figure = Figure(figsize=(6.8, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes)
        if kind == "bar":  # the names of bars take much of the width, the title wants all of it
            figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
        else:
            axes.set_title(title, loc="left", fontsize=15, fontweight="bold", pad=12)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x" if kind == "bar" else "y", color=INK, alpha=0.15)
        axes.set_axisbelow(True)
        values = axes.xaxis if kind == "bar" else axes.yaxis
        for axis, log in ((axes.xaxis, logx), (axes.yaxis, logy)):
            if log:
                (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            elif kind != "bar" or axis is values:
                axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=whole and axis is axes.xaxis))
            if kind != "bar" or axis is values:
                text_of = _percent if percent and axis is values else _short
                axis.set_major_formatter(FuncFormatter(text_of))
                if log:
                    axis.set_minor_formatter(Minor(text_of))
        if not logy and kind == "line" and axes.dataLim.ymin >= 0:
            axes.set_ylim(bottom=0)
        if legend:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower left", ncols=columns, frameon=False, fontsize=13)
        silent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=silent)
    return _tidy(text.getvalue(), inputs, f"chart {inputs}, matplotlib {matplotlib.__version__}", title)


def _tidy(svg: str, inputs: str, stamp: str, title: str) -> str:
    """One inline-able element: own ids, ink that follows the page, generic font, a name for screen readers."""
    body = svg[svg.index("<svg") :].strip()
    opening, body = body[: body.index(">") + 1], body[body.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    body = re.sub(r"<style[^>]*>.*?</style>", f"<style>{_STYLE}</style>", body, count=1, flags=re.DOTALL)
    body = body.replace(INK, "currentColor").replace("xlink:href=", "href=")
    body = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", body)
    clips = list(dict.fromkeys(re.findall(r'<clipPath id="([^"]+)"', body)))  # matplotlib hashes their coordinates
    for number, clip in enumerate(clips, 1):
        body = body.replace(f'"{clip}"', f'"clip{number}"').replace(f"#{clip})", f"#clip{number})")
    body = re.sub(r'(id="|href="#|url\(#)', rf"\1c{inputs}-", body)
    name = html.escape(title, quote=True)
    attributes = f'class="paring-chart" {box.group()} role="img" aria-label="{name}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>\n<!-- {stamp} -->{body}\n'


def _drawable(text: str) -> str:
    """The text with lone surrogates escaped: no font has them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _label(name: str) -> str:
    """The name as a legend shows it; matplotlib would leave out one that starts with an underscore."""
    shown = _drawable(name)
    return f"\u2009{shown}" if shown.startswith("_") else shown


def _short(value: float, _place: int | None = None) -> str:
    return short(value)


def _percent(value: float, _place: int | None = None) -> str:
    return f"{100 * value:.3g} %"
