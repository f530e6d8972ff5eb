"""What `mkdocs build` needs beside mkdocs.yml: pages that live elsewhere, and a check of what was built.

The site loads nothing from elsewhere, and no link of it is dead; a build that does is an error. `mkdocs.yml` names this
file under `hooks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_BORROWED = {"src/paring/files/pare/FORMAT.md": "how/format.md", "CHANGELOG.md": "changelog.md"}
_LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
_FETCHED = {"stylesheet", "preload", "prefetch", "preconnect", "icon", "manifest", "modulepreload", "dns-prefetch"}


class SiteError(ValueError):
    """The built site loads something from elsewhere or has a dead link; the message lists all of them."""


def on_files(files: Any, config: Any) -> Any:
    """Files of the repository that are pages of the site too."""
    from mkdocs.structure.files import File

    for source, page in _BORROWED.items():
        text = (Path(config.config_file_path).parent / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to those files lead to their pages."""
    for source, target in _BORROWED.items():
        up = "../" * page.file.src_uri.count("/")
        markdown = markdown.replace(f"](../{up}{source})", f"]({up}{target})")
    return markdown


def on_post_build(config: Any) -> None:
    """Refuse a site that is not whole.

    Raises:
        SiteError: see there.
    """
    check(Path(config.site_dir))


def check(site: Path) -> None:
    """Look at every page below `site`.

    Raises:
        SiteError: a script, style, font, image or frame comes from elsewhere, or a link leads nowhere.
    """
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    found = [problem for path, page in pages.items() for problem in _problems(site, path, page, pages)]
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path.relative_to(site)}: loads from elsewhere"
            for word in ("url(http", "url(//", "@import")
            if word in text
        ]
    if found:
        raise SiteError("the site is not whole:\n" + "\n".join(dict.fromkeys(found)))


class _Page(HTMLParser):
    """Ids, links and loaded addresses of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what the tag names."""
        told = {name: value or "" for name, value in attrs}
        self.ids |= {told[name] for name in ("id", "name") if told.get(name)}
        if tag == "a" and "href" in told:
            self.links.append(told["href"])
        if tag in _LOADS and told.get(_LOADS[tag]):
            self.loaded.append(told[_LOADS[tag]])
        if tag == "link" and _FETCHED & set(told.get("rel", "").split()):
            self.loaded.append(told.get("href", ""))


def _problems(site: Path, path: Path, page: _Page, pages: dict[Path, _Page]) -> Iterator[str]:
    where = path.relative_to(site)
    for address in page.loaded:
        if urlsplit(address).netloc:
            yield f"{where}: loads {address}"
        elif urlsplit(address).scheme != "data" and not _target(site, path, address).is_file():
            yield f"{where}: {address} is missing"
    for address in page.links:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target, anchor = _target(site, path, address), unquote(parts.fragment)
        if not target.is_file():
            yield f"{where}: {address} leads nowhere"
        elif anchor and target in pages and anchor not in pages[target].ids and not anchor.startswith("__"):
            yield f"{where}: {address} has no such place"


def _target(site: Path, path: Path, address: str) -> Path:
    """The file that an address of a page means."""
    name = unquote(urlsplit(address).path)
    found = path if not name else (site / name.lstrip("/") if name.startswith("/") else path.parent / name)
    found = found.resolve()
    return found / "index.html" if found.is_dir() else found
