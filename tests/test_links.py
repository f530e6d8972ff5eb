"""No link of README or docs is dead: files, headings, and the site's list of pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


def _prose(text: str) -> str:
    """The text without its code, where brackets are no links."""
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]]", " ", code.group()), text)


def _links(text: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", _prose(text))


def _anchors(text: str) -> set[str]:
    """What headings are called by both repository pages and the site: only anchors that the two agree on may be linked."""
    found = set()
    for heading in re.findall(
        r"^#+ +(.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    ):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        kept = re.sub(r"[^\w\s-]", "", words)
        one, other = kept.replace(" ", "-"), re.sub(r"[-\s]+", "-", kept)
        found |= {one} if one == other and one.isascii() else set()
    return found


def dead(page: Path, text: str) -> list[str]:
    """The links of this page that lead nowhere."""
    found = []
    for link in _links(text):
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (
            anchor and anchor not in _anchors(text if target == page else target.read_text(encoding="utf-8"))
        ):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    assert dead(page, page.read_text(encoding="utf-8")) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title\n\n## Café\n", encoding="utf-8")
    text = "# Here\n\n[a](other.md) [b](other.md#a-title) [c](#here) `[d](code.md)` [e](https://example.org)\n"
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    assert dead(tmp_path / "page.md", text) == []
    wrong = "[a](gone.md) [b](other.md#no) [c](#no) [d](other.md#café)"
    assert dead(tmp_path / "page.md", wrong) == ["gone.md", "other.md#no", "#no", "other.md#café"]


def test_the_site_shows_every_page() -> None:
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = set(re.findall(r"([\w/-]+\.md)$", told, re.MULTILINE)) - {"how/format.md", "changelog.md"}
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if ROOT / "docs" in path.parents}


def test_every_link_between_readme_and_results_is_relative() -> None:
    """The project has no address of its own yet, so none may be claimed."""
    for page in PAGES:
        for link in _links(page.read_text(encoding="utf-8")):
            assert "paring" not in link or not link.startswith("http"), (page, link)
