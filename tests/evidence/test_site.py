"""The check of the built site finds what it is for: pages that load from elsewhere, and links that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from evidence.site import SiteError, check

GOOD = '<link rel="stylesheet" href="a.css"><img src="data:image/png;base64,AA"><h1 id="top"></h1>'
GOOD += '<a href="#top">x</a><a href="sub/">x</a><a href="https://example.org">x</a><a href="#__skip">x</a>'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.css").write_text("p { color: red }", encoding="utf-8")
    (tmp_path / "index.html").write_text(GOOD, encoding="utf-8")
    (tmp_path / "sub/index.html").write_text('<a href="../index.html#top">x</a>', encoding="utf-8")
    return tmp_path


def test_a_whole_site_passes(site: Path) -> None:
    check(site)


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ('<script src="https://example.org/a.js"></script>', r"index\.html: loads https://example\.org/a\.js"),
        ('<link rel="preconnect" href="//fonts.example.org">', "loads //fonts"),
        ('<img src="gone.png">', r"gone\.png is missing"),
        ('<a href="gone.html">x</a>', r"gone\.html leads nowhere"),
        ('<a href="sub/#gone">x</a>', r"sub/#gone has no such place"),
    ],
)
def test_what_is_not_whole_is_refused(site: Path, added: str, problem: str) -> None:
    (site / "index.html").write_text(GOOD + added, encoding="utf-8")
    with pytest.raises(SiteError, match=problem):
        check(site)


def test_a_style_that_loads_a_font_is_refused(site: Path) -> None:
    (site / "a.css").write_text("@font-face { src: url(https://example.org/a.woff) }", encoding="utf-8")
    with pytest.raises(SiteError, match=r"a\.css: loads from elsewhere"):
        check(site)
