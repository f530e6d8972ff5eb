"""Tables and figures of README.md and of the pages in docs/, made from `results/`.

    <!-- paring:table NAME [VIEW] -->        <!-- paring:figure NAME [VIEW] -->
    ...                                      ...
    <!-- /paring -->                         <!-- /paring -->

Each marker stands alone on its line, from the first column (an indented or quoted one is text). What lies between is
replaced by the view of `results/NAME.json` (see `evidence.views.views`; default "rows") and a line that says which command
made the numbers, when and on what; a figure goes to `docs/figures/NAME[-VIEW].svg` and is linked. A table of more than
`LONG` lines is folded: readers see how long it is, and open it.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path

from evidence.views.views import FIGURES, VIEWS, find
from paring.cli.plots import same_chart
from paring.cli.results import Results, load
from paring.train import write_atomic

_OPEN = re.compile(r"<!-- paring:(?P<kind>\S+) (?P<name>[\w.-]+)(?: (?P<view>[\w.-]+))? -->")
_CLOSE = "<!-- /paring -->"
_TITLE = re.compile(r'<svg [^>]*aria-label="(?P<title>[^"]*)"')
LONG = 12  # lines of a table that are shown unfolded


class DocsError(ValueError):
    """A block that cannot be filled; the message names file, line and reason."""


def regenerate(root: Path, check: bool = False) -> list[Path]:
    """Bring the documents below `root` in step with `root/results`.

    Args:
        root: the project's folder.
        check: write nothing.

    Returns:
        The files that were written; with `check`, those that are out of step.

    Raises:
        DocsError: a block without end, or a kind or view that does not exist.
        ResultsError: a results file is damaged.
    """
    stale: list[Path] = []
    for document in _documents(root):
        old = document.read_text(encoding="utf-8")
        new, figures = _fill(root, document, old)
        for path, svg in figures.items():
            if not path.exists() or not same_chart(path.read_text(encoding="utf-8"), svg):
                stale.append(path)
                _write(path, svg, check)
        if new != old:
            stale.append(document)
            _write(document, new, check)
    return list(dict.fromkeys(stale))


def _documents(root: Path) -> Iterator[Path]:
    yield from (path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.is_file())


def _write(path: Path, text: str, check: bool) -> None:
    if not check:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)


def _fill(root: Path, document: Path, text: str) -> tuple[str, dict[Path, str]]:
    """The document with its blocks filled, and the figures that they link."""
    lines: list[str] = []
    figures: dict[Path, str] = {}
    inside: tuple[int, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{document.relative_to(root)}, line {number}"
        if line.startswith("<!-- paring:"):
            if inside is not None:
                raise DocsError(f"{where}: the block of line {inside[0]} is still open; close it with {_CLOSE}")
            inside = (number, line)
            body, drawn = _block(root, document, line.rstrip(), where)
            lines += [line, *body]
            figures |= drawn
        elif line.rstrip() == _CLOSE:
            if inside is None:
                raise DocsError(f"{where}: {_CLOSE} closes nothing")
            inside = None
            lines.append(line)
        elif inside is None:
            lines.append(line)
    if inside is not None:
        raise DocsError(f"{document.relative_to(root)}, line {inside[0]}: {inside[1]} is never closed; add {_CLOSE}")
    return "\n".join(lines) + ("\n" if text.endswith("\n") else ""), figures


def _block(root: Path, document: Path, marker: str, where: str) -> tuple[list[str], dict[Path, str]]:
    """Lines between the markers, and the figure if it is one."""
    found = _OPEN.fullmatch(marker)
    if found is None or found["kind"] not in ("table", "figure"):
        raise DocsError(f"{where}: {marker} is neither <!-- paring:table NAME [VIEW] --> nor paring:figure")
    kind, name, view = found["kind"], found["name"], found["view"] or "rows"
    source = root / "results" / f"{name}.json"
    try:
        tabulate, draw = (find(VIEWS, name, view), None) if kind == "table" else (None, find(FIGURES, name, view))
    except KeyError as error:
        raise DocsError(f"{where}: {error.args[0]}") from error
    if not source.exists():
        return _frame(f"Not measured yet: results/{source.name} is missing (`{_command(name, view)}` makes it)."), {}
    results = load(source)
    if tabulate is not None:
        return _frame(*_folded(tabulate(results)), _made(results)), {}
    svg = draw(results) if draw is not None else None
    if svg is None:
        return _frame(f"Not measured yet: results/{source.name} has no rows for this figure."), {}
    path = root / "docs" / "figures" / (f"{name}-{found['view']}.svg" if found["view"] else f"{name}.svg")
    link = Path(os.path.relpath(path, document.parent)).as_posix()
    return _frame(f"![{_title(svg)}]({link})", _made(results)), {path: svg}


def _title(svg: str) -> str:
    """The chart's title, for those who do not see it."""
    found = _TITLE.match(svg)
    assert found is not None, "charts carry their title"
    return html.unescape(found["title"]).replace("[", "(").replace("]", ")")


def _folded(table: str) -> list[str]:
    """The table, or the table in an element that opens on request."""
    lines = len(table.splitlines()) - 2
    if lines <= LONG:
        return [table]
    return [f'<details markdown="1">\n<summary>The table: {lines} lines</summary>', table, "</details>"]


def _frame(*parts: str) -> list[str]:
    """Parts set apart by empty lines, which markdown needs around tables."""
    return [line for part in parts for line in ("", *part.splitlines())] + [""]


def _made(results: Results) -> str:
    return f"*Made by {results.made()}.*"


def _command(name: str, view: str) -> str:
    """The command that makes results of this name."""
    from evidence.bench import BENCHES

    return f"python -m evidence {'bench' if view == 'bench' or name in BENCHES else 'table'} {name}"
