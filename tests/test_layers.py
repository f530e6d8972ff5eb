"""Lower layers never import higher ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "paring"
LEVELS = (
    ("core", "select", "models", "data"),
    ("analysis",),
    ("removal",),
    ("files",),
    ("cost", "hard"),
    ("bits",),
    ("gates", "deployment"),
    ("run",),
    ("compression", "methods"),
    ("train",),
    ("pruning",),
    ("testing", "integrations"),
    ("cli",),
)
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "paring"
                else {node.module or ""}
            )
    return {name.split(".")[1] for name in found if name.startswith("paring.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    assert own in LEVEL, f"{own} has no level; add it to LEVELS"
    for package in imported(path) - {own}:
        if own == "cli" and package == "__version__":
            continue
        assert package in LEVEL, f"{path}: imports paring.{package}, which has no level"
        assert LEVEL[package] < LEVEL[own], f"{path}: paring.{own} must not import paring.{package}"


def test_methods_do_not_import_each_other() -> None:
    shared = {
        "__init__",
        "price",
        "budget",
        "hold",
        "by_layer",
        "expected_l2",
        "chosen",
        "trained_start",
        "scheduled",
        "meet",
    }  # no methods
    names = {path.stem for path in (ROOT / "methods").glob("*.py")} - shared
    for path in (ROOT / "methods").glob("*.py"):
        if path.stem == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paring.methods."):
                assert node.module.split(".")[2] not in names, f"{path.name} imports the method {node.module}"


def test_top_level_stays_small() -> None:
    import paring

    others = set(paring.__all__) - set(paring.methods.__all__)
    assert set(paring.methods.__all__) <= set(paring.__all__)
    assert len(others) <= 31
    assert all(hasattr(paring, name) for name in paring.__all__)


def module_name(path: Path) -> str:
    """The module's dotted name."""
    return ".".join(("paring", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports for types and imports inside functions count too."""
    modules = {module_name(path): path for path in ROOT.rglob("*.py")}
    reads: dict[str, set[str]] = {}
    for name, path in modules.items():
        reads[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                reads[name] |= {one if one in modules else node.module for one in whole} - {name}
    left = dict(reads)
    while True:  # take away what reads nothing that is left, and what nothing that is left reads
        wanted = set().union(*left.values())
        free = {name for name, read in left.items() if name not in wanted or not read & left.keys()}
        if not free:
            break
        left = {name: read for name, read in left.items() if name not in free}
    assert not left, f"these import each other in a circle: {sorted(left)}"


def test_every_room_is_on_the_map() -> None:
    text = (ROOT.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    order = [name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[2]) if name != "evidence"]
    assert set(order) == set(LEVEL)
    assert [LEVEL[name] for name in order] == sorted(LEVEL.values())
    levels = {name: line.split("|")[1].strip() for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert all(levels[name] == str(level) for name, level in LEVEL.items())


def test_no_file_name_stands_twice() -> None:
    places: dict[str, list[Path]] = {}
    for path in [*ROOT.rglob("*.py"), *(ROOT.parents[1] / "evidence").rglob("*.py")]:
        if not path.name.startswith("__"):
            places.setdefault(path.name, []).append(path.relative_to(ROOT.parents[1]))
    assert not {name: found for name, found in places.items() if len(found) > 1}
